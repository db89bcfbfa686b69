"""The base's embedding or output head, with which each adapter may have a weight of its own.

Shapes: T tokens of the batch, t those of one adapter; `...` any leading sizes.
"""

from torch import Tensor

from workers.injection.wrapper import AdaptedModule
from workers.layers.trained_weight import TrainedWeight


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
                own_tX = self._of(name, given_T[token_t], output_TX[token_t])
                output_TX[token_t] = own_tX.to(output_TX.dtype)
        return output_TX.view(output.shape)

    def _of(self, slot: str | None, given: Tensor, output: Tensor | None = None) -> Tensor:
        """What a slot's rows get; `output` is the base's, where it is there already."""
        own = self.adapters[self._keys[slot]] if slot in self._keys else None
        if isinstance(own, TrainedWeight):
            copied: Tensor = own(self.base, given)
            return copied
        output = self.base(given) if output is None else output
        if own is not None:
            output = own(self.base, given, output)
        assert isinstance(output, Tensor)
        return output
