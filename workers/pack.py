"""Several adapters on one frozen base: each row of a batch goes through its own.

The base's matmuls run once for the whole batch, the adapters' once for all adapters together: their
experts lie one after the other in one bank, and every token names the experts of its own adapter.
Shapes: T tokens of the batch (its leading dimensions flattened), t tokens of one adapter, K slots,
R rank, D a site's input, O its output.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workers.layers.adapt import Adapted, adapt_block, adapt_few, adapt_linear
from workers.layers.bank import Bank, join
from workers.layers.experts import BlockExperts, LinearExperts
from workers.layers.feed_forward import FeedForward
from workers.layers.few import FewTokens
from workers.layers.mixture import Mode
from workers.layers.pairs import Pairs
from workers.layers.router import Routing
from workers.rows import RowMap, Slot, Split

Layer = BlockExperts | LinearExperts


class Site(nn.Module):
    """A place of the model where adapters attach: the frozen `base` and one layer for each slot."""

    def __init__(
        self, base: nn.Module, rows: RowMap, feed_forward: FeedForward | None = None
    ) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self._keys: dict[Slot, str] = {}
        self.rows = rows
        self.feed_forward = feed_forward
        """How the base was read, if it is a feed-forward block."""
        self.few = FewTokens(capacity=4)
        """Adapters that decoded together last."""
        self.training = base.training  # A model in eval mode must not get dropout.

    @property
    def weight(self) -> Tensor:
        """The base's weight: some models look at its type or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def add(self, slot: str, layer: Layer) -> None:
        """Attach `layer` for `slot`, on the base's device and in its mode."""
        device = next(self.base.parameters()).device
        self._keys[slot] = _key(slot)
        self.adapters[_key(slot)] = layer.to(device).train(self.training)

    def take_off(self, slot: str) -> None:
        """Detach the layer of `slot`."""
        del self.adapters[self._keys.pop(slot)]
        self.few.forget()

    def forward(self, hidden: Tensor) -> Tensor:
        """The base with each row's adapter: [..., D] to [..., O]."""
        if self.training:
            self.few.forget()  # Weights may change without a trace.
        kind = hidden.device.type
        if torch.is_autocast_enabled(kind):  # What it leaves alone needs one type all through.
            hidden = hidden.to(torch.get_autocast_dtype(kind))
        if not self.rows.is_mixed():
            return self._one(self._layer(self.rows.only()), hidden)
        split = self.rows.split(hidden)
        layers = [self._layer(name) for name in split.names]
        if not any(layers):
            output: Tensor = self.base(hidden)
            return output
        if not all(layers) and self._has_sites():
            return self._in_two(layers, split, hidden)
        output_TO = _pack(self, layers, split, hidden)
        return output_TO.view(*hidden.shape[:-1], output_TO.shape[-1])

    def _one(self, layer: Layer | None, hidden: Tensor) -> Tensor:
        """All rows to one layer, or to the base."""
        if layer is None:
            output: Tensor = self.base(hidden)
            return output
        length = hidden.shape[-2] if hidden.dim() == 3 else None
        flat_TD = hidden.reshape(-1, hidden.shape[-1])
        output_TO: Tensor = layer(self.feed_forward or self.base, flat_TD, length)
        return output_TO.view(*hidden.shape[:-1], output_TO.shape[-1])

    def _in_two(self, layers: Sequence[Layer | None], split: Split, hidden: Tensor) -> Tensor:
        """Rows with block experts, and rows whose adapters sit on the linears inside the block."""
        rows = hidden if self.rows.by_row(hidden) else hidden.flatten(0, -2)
        outputs, places = [], []
        for wanted in (True, False):
            members = zip(split.names, layers, strict=True)
            names = frozenset(name for name, layer in members if (layer is not None) is wanted)
            with self.rows.narrowed(hidden, names) as row_n:
                outputs.append(self(rows[row_n]))
            places.append(row_n)
        output: Tensor = torch.cat(outputs)[torch.cat(places).argsort()]
        return output.view(*hidden.shape[:-1], output.shape[-1])

    def _layer(self, slot: Slot) -> Layer | None:
        if slot not in self._keys:
            return None
        layer = self.adapters[self._keys[slot]]
        assert isinstance(layer, BlockExperts | LinearExperts)
        return layer

    def _has_sites(self) -> bool:
        return any(isinstance(module, Site) for module in self.base.modules())


class _Member(NamedTuple):
    """One adapter's part of a packed batch."""

    layer: Layer | None
    """None for the rows of the bare base."""
    token_t: Tensor
    routing: Routing | None
    first: int
    """Its first expert in the bank."""

    @property
    def experts(self) -> int:
        """How many experts it has there."""
        return _experts(self.layer)

    def choice(self, void: int) -> tuple[Tensor, Tensor]:
        """Experts in the bank and gates of its tokens, [t, K]."""
        if self.routing is not None:
            expert_tK, gate_tK = self.routing.expert_TK, self.routing.gate_TK
            return torch.where(expert_tK < self.experts, expert_tK + self.first, void), gate_tK
        expert_t1 = torch.full_like(self.token_t, void if self.layer is None else self.first)
        return expert_t1.unsqueeze(1), torch.ones_like(expert_t1).unsqueeze(1).float()


def _pack(site: Site, layers: Sequence[Layer | None], split: Split, hidden: Tensor) -> Tensor:
    """All rows through one bank: [T, O]."""
    hidden_TD = hidden.reshape(-1, hidden.shape[-1])
    length = hidden.shape[-2] if hidden.dim() == 3 else None
    members, first = [], 0
    for layer, token_t in zip(layers, split.tokens, strict=True):
        routing = None
        if layer is not None and layer.router is not None:
            whole = length if length and len(token_t) % length == 0 else None
            routing = layer.router(hidden_TD[token_t], whole)
        members.append(_Member(layer, token_t, routing, first))
        first += _experts(layer)
    expert_TK, gate_TK = _choices(members, split, first)
    blocks = [layer for layer in layers if isinstance(layer, BlockExperts)]
    linears = [layer for layer in layers if isinstance(layer, LinearExperts)]
    if site.feed_forward is not None and not _is_watched(blocks):
        made = site.few.prepared(site.feed_forward, blocks, hidden.dtype, expert_TK.numel())
        if made is not None:
            return adapt_few(site.feed_forward, made, hidden_TD, expert_TK, gate_TK)
    pairs = Pairs(expert_TK, gate_TK, first, voids=True)
    mode = Mode(_rate(members, split))
    if site.feed_forward is not None:
        banks = _block_banks(blocks, site.feed_forward, hidden)
        adapted = adapt_block(site.feed_forward, banks, pairs, hidden_TD, mode)
    else:
        bank = join([layer.bank(site.base, hidden.dtype) for layer in linears])
        adapted = adapt_linear(site.base, bank, pairs, hidden_TD, mode)
    _record(members, adapted)
    return adapted.output_TO


def _is_watched(layers: Sequence[Layer]) -> bool:
    """Whether a layer trains or is asked what it does: a decoding step's short way does neither."""
    return any(layer.training or layer.recorder is not None for layer in layers)


def _choices(members: Sequence[_Member], split: Split, experts: int) -> tuple[Tensor, Tensor]:
    """Experts and gates token by token, [T, K]; slots that a member lacks are void with gate 0."""
    choices = [member.choice(experts) for member in members]
    slots = max(expert_tK.shape[1] for expert_tK, _ in choices)
    precision = reduce(torch.promote_types, (gate_tK.dtype for _, gate_tK in choices))
    expert_TK = torch.cat([pad(e, (0, slots - e.shape[1]), value=experts) for e, _ in choices])
    gate_TK = torch.cat([pad(g.to(precision), (0, slots - g.shape[1])) for _, g in choices])
    return expert_TK[split.place_T], gate_TK[split.place_T]


def _rate(members: Sequence[_Member], split: Split) -> float | Tensor:
    """The dropout's rate: of all tokens, or of each."""
    rates = [
        member.layer.rate if member.layer is not None and member.layer.training else 0.0
        for member in members
    ]
    if len(set(rates)) == 1:
        return rates[0]
    # Filled where they lie: a list from the host would make a GPU wait.
    parts = [
        torch.full(member.token_t.shape, rate, device=member.token_t.device)
        for member, rate in zip(members, rates, strict=True)
    ]
    return torch.cat(parts)[split.place_T]


def _block_banks(
    layers: Sequence[BlockExperts], block: FeedForward, hidden: Tensor
) -> dict[str, Bank]:
    """The joint bank of every linear that any of the layers adapts."""
    each = [layer.banks(block, hidden.dtype) for layer in layers]
    banks = {}
    for name in block.linears:
        if any(name in own for own in each):
            sizes = block.sizes(name)
            parts = [
                own.get(name) or _no_update(layer, sizes, hidden)
                for layer, own in zip(layers, each, strict=True)
            ]
            banks[name] = join(parts)
    return banks


def _no_update(layer: BlockExperts, sizes: tuple[int, int], hidden: Tensor) -> Bank:
    experts = _experts(layer)
    lora_A_NRI = hidden.new_zeros(experts, 1, sizes[0])
    return Bank(lora_A_NRI, hidden.new_zeros(experts, sizes[1], 1), 1.0)


def _record(members: Sequence[_Member], adapted: Adapted) -> None:
    """Tell each member's recorder what its rows did."""
    for member in members:
        if member.layer is None or member.routing is None or member.layer.recorder is None:
            continue
        slots = member.routing.expert_TK.shape[1]
        terms = adapted.terms(member.layer.compared)
        own = tuple(one_TKR[member.token_t, :slots] for one_TKR in terms)
        member.layer.recorder(member.routing, own, member.token_t)


def _experts(layer: Layer | None) -> int:
    if layer is None:
        return 0
    return 1 if layer.router is None else layer.router.weight.shape[0]


def _key(slot: str) -> str:
    """A slot's key in a ModuleDict, which allows neither dots nor names such as `keys`."""
    return "slot_" + slot.encode().hex()
