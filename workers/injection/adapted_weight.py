"""The base's embedding or output head, with which each adapter may have a weight of its own.

Shapes: T tokens of the batch, t those of one adapter; `...` any leading sizes.
"""

from torch import Tensor

from workers.injection.wrapper import AdaptedModule


class AdaptedWeight(AdaptedModule):
    """An embedding, or a head, whose rows each meet their own adapter's copy of its weight."""

    @property
    def num_embeddings(self) -> int:
        """Of an embedding: the vocabulary's size."""
        return len(self.weight)

    def forward(self, given: Tensor) -> Tensor:
        """Of token ids [...], or of hidden states [..., D]."""
        if not self.rows.is_mixed():
            return self._of(self.rows.only(), given)
        ids = not given.is_floating_point()
        hidden = given.unsqueeze(-1) if ids else given
        partition = self.rows.partition(hidden, of_head=not ids)
        output: Tensor = self.base(given)
        if not any(name in self._keys for name in partition.names):
            return output
        given_T = given.flatten() if ids else given.flatten(0, -2)
        output_TX = output.reshape(-1, output.shape[-1]).clone()
        for name, token_t in zip(partition.names, partition.tokens, strict=True):
            if name in self._keys and len(token_t):
                output_TX[token_t] = self._of(name, given_T[token_t]).to(output_TX.dtype)
        return output_TX.view(output.shape)

    def _of(self, slot: str | None, given: Tensor) -> Tensor:
        if slot not in self._keys:
            output: Tensor = self.base(given)
            return output
        copied: Tensor = self.adapters[self._keys[slot]](self.base, given)
        return copied
