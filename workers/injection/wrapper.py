"""A place of the model where adapters attach.

Shapes: D an adapted module's input, O its output; `...` any leading sizes.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn

from workers.injection.mixed_batch import Layer, PlacedBatch, packed_block, packed_linear
from workers.injection.row_map import RowMap, Slot, TokenPart, TokenPartition
from workers.layers.experts import BlockExperts, LinearExperts
from workers.layers.feed_forward import FeedForward
from workers.layers.inference.prepared import PreparedExperts
from workers.layers.ops.autocast import is_autocast
from workers.layers.ops.random_state import mixed, seeded


class AdaptedModule(nn.Module):
    """A place of the model where adapters attach: the frozen `base` and one layer for each slot."""

    def __init__(
        self,
        base: nn.Module,
        rows: RowMap,
        feed_forward: FeedForward | None = None,
        number: int = 0,
    ) -> None:
        super().__init__()
        self.number = number
        """Among the places of its model, which draw different random numbers."""
        self.base = base
        self.adapters = nn.ModuleDict()
        self._keys: dict[Slot, str] = {}
        self.rows = rows
        self.feed_forward = feed_forward
        """How the base was read, if it is a feed-forward block."""
        # Of a block it takes much memory.
        self._prepared = PreparedExperts(capacity=4 if feed_forward is None else 2)
        self.training = base.training  # A model in eval mode must not get dropout.

    @property
    def weight(self) -> Tensor:
        """The base's weight: some models look at its type or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def add(self, slot: str, layer: nn.Module) -> None:
        """Attach `layer` for `slot`, on the base's device and in its mode."""
        device = next(self.base.parameters()).device
        self._keys[slot] = _key(slot)
        self.adapters[_key(slot)] = layer.to(device).train(self.training)

    def take_off(self, slot: str) -> None:
        """Detach the layer of `slot`."""
        del self.adapters[self._keys.pop(slot)]
        self._prepared.forget()

    def train(self, mode: bool = True) -> Self:
        """Forget what was prepared: weights may change without a trace."""
        if mode:
            self._prepared.forget()
        return super().train(mode)

    def forward(self, hidden: Tensor) -> Tensor:
        """The base with each row's adapter: [..., D] to [..., O]."""
        if is_autocast(hidden):  # What it leaves alone needs one type all through.
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        if parts := self.rows.parts:
            return self._apart(parts, hidden)
        if not self.rows.is_mixed():
            return self._one(self._layer(self.rows.only()), hidden)
        partition = self.rows.partition(hidden)
        layers = [self._layer(name) for name in partition.names]
        if not any(layers):
            output: Tensor = self.base(hidden)
            return output
        if not all(layers) and self._has_inner():
            return self._in_two(layers, partition, hidden)
        output_TO = self._packed(layers, partition, hidden)
        return output_TO.view(*hidden.shape[:-1], output_TO.shape[-1])

    def _one(self, layer: Layer | None, hidden: Tensor) -> Tensor:
        """All rows to one layer, or to the base."""
        if layer is None:
            output: Tensor = self.base(hidden)
            return output
        flat_TD = hidden.reshape(-1, hidden.shape[-1])
        sequences = self.rows.sequences(hidden)
        output_TO: Tensor = layer(self.feed_forward or self.base, flat_TD, sequences)
        return output_TO.view(*hidden.shape[:-1], output_TO.shape[-1])

    def _apart(self, parts: Sequence[TokenPart], hidden: Tensor) -> Tensor:
        """Each part of the batch through its own layer, as if it were alone. So small a product is
        no dearer on a CPU than a large one, and no token has to be sought out."""
        layers = [self._layer(one.slot) for one in parts]
        if not any(layers):
            whole: Tensor = self.base(hidden)
            return whole
        sizes = [one.tokens for one in parts]
        hidden_tD = torch.split(hidden.reshape(-1, hidden.shape[-1]), sizes)
        outputs = [self._of_part(*one) for one in zip(parts, layers, hidden_tD, strict=True)]
        output_TO = torch.cat(outputs)
        return output_TO.view(*hidden.shape[:-1], output_TO.shape[-1])

    def _of_part(self, part: TokenPart, layer: Layer | None, hidden_tD: Tensor) -> Tensor:
        if layer is None:
            with self.rows.apart([part]):  # for adapted modules inside
                bare_tO: Tensor = self.base(hidden_tD)
            return bare_tO
        draws = layer.training and (layer.rate or (layer.router and layer.router.is_random))
        seed = mixed(part.seed, self.number)
        with seeded(seed, hidden_tD.device) if draws else nullcontext():
            output_tO: Tensor = layer(self.feed_forward or self.base, hidden_tD, part.sequence_t)
        return output_tO

    def _packed(
        self, layers: Sequence[Layer | None], partition: TokenPartition, hidden: Tensor
    ) -> Tensor:
        """All rows, each to its own layer or to the base."""
        batch = PlacedBatch(partition, self.number)
        if self.feed_forward is None:
            linears = [one if isinstance(one, LinearExperts) else None for one in layers]
            return packed_linear(self.base, linears, batch, hidden, self._prepared)
        blocks = [one if isinstance(one, BlockExperts) else None for one in layers]
        return packed_block(self.feed_forward, blocks, batch, hidden, self._prepared)

    def _in_two(
        self, layers: Sequence[Layer | None], partition: TokenPartition, hidden: Tensor
    ) -> Tensor:
        """Rows with block experts, and rows whose adapters sit on the linears inside the block."""
        rows = hidden if self.rows.by_row(hidden) else hidden.flatten(0, -2)
        outputs, places = [], []
        for wanted in (True, False):
            members = zip(partition.names, layers, strict=True)
            names = frozenset(name for name, layer in members if (layer is not None) is wanted)
            with self.rows.narrowed(hidden, names) as row_n:
                if len(row_n):  # else these adapters have no row now
                    outputs.append(self(rows[row_n]))
                    places.append(row_n)
        output: Tensor = torch.cat(outputs)[torch.cat(places).argsort()]
        return output.view(*hidden.shape[:-1], output.shape[-1])

    def _layer(self, slot: Slot) -> Layer | None:
        if slot not in self._keys:
            return None
        layer = self.adapters[self._keys[slot]]
        assert isinstance(layer, Layer)
        return layer

    def _has_inner(self) -> bool:
        return any(isinstance(module, AdaptedModule) for module in self.base.modules())


def _key(slot: str) -> str:
    """A slot's key in a ModuleDict, which allows neither dots nor names such as `keys`."""
    return "slot_" + slot.encode().hex()
