"""Several adapters on one frozen base: each row of a batch goes through its own.

The base's matmuls run once for the whole batch, the adapters' once for all adapters together: their
experts lie one after the other in one bank, and every token names the experts of its own adapter.
Shapes: T tokens of the batch (its leading dimensions flattened), t tokens of one adapter, K slots,
R rank, D an adapted module's input, O its output.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workers.injection.row_map import TokenPartition
from workers.layers.assignments import ExpertAssignments
from workers.layers.block import Adapted, Frozen, adapt_block, adapt_linear, adapt_prepared
from workers.layers.expert_bank import ExpertBank, join
from workers.layers.experts import BlockExperts, LinearExperts
from workers.layers.feed_forward import FeedForward
from workers.layers.inference.prepared import PreparedExperts
from workers.layers.mixture.select import Mode
from workers.layers.ops.dropout import OwnRate, PartedRates, dropped
from workers.layers.ops.random_state import seeded
from workers.layers.routing.base import Router, Routing, Sequences
from workers.layers.stack_lora import StackLora

Layer = BlockExperts | LinearExperts | StackLora


class PlacedBatch(NamedTuple):
    """The rows of a batch at one place of the model."""

    partition: TokenPartition
    place: int
    """The place's number."""


def packed_block(
    block: FeedForward,
    layers: Sequence[BlockExperts | None],
    batch: PlacedBatch,
    hidden: Tensor,
    prepared: PreparedExperts,
) -> Tensor:
    """All rows of `hidden` [..., D] through one block and one bank: [T, D]. `layers` are those of
    the batch's names, None for the bare base; `prepared` keeps what serving needs again."""
    hidden_TD = hidden.reshape(-1, hidden.shape[-1])
    watched = any(layer.is_watched for layer in layers if layer is not None)
    made = None if watched else prepared.of(block, layers, hidden_TD)
    if made is not None and made.router is not None:
        assignments = made.router.route(hidden_TD, batch.partition.name_T)
        return block.leave(adapt_prepared(block, made, hidden_TD, assignments))
    members = _members(layers, batch, hidden)
    assignments = _assignments(members, batch.partition)
    if made is not None:
        return block.leave(adapt_prepared(block, made, hidden_TD, assignments))
    banks, mode = _block_banks(layers, block, hidden), Mode(_rate(members, batch.partition))
    adapted = adapt_block(block, banks, assignments, hidden_TD, mode)
    _record(members, adapted, batch.partition)
    return block.leave(adapted.output_TO)


def packed_linear(
    linear: nn.Module,
    layers: Sequence[LinearExperts | None],
    batch: PlacedBatch,
    hidden: Tensor,
    prepared: PreparedExperts,
) -> Tensor:
    """All rows of `hidden` [..., D] through one linear and one bank: [T, O]. `layers` as those of
    `packed_block`, and so `prepared`."""
    hidden_TD = hidden.reshape(-1, hidden.shape[-1])
    loras = prepared.plain(linear, layers, hidden_TD)
    if loras is not None:
        adapted_TO = loras.adapted(linear, hidden_TD, batch.partition.name_T)
        if adapted_TO is not None:
            return adapted_TO
    members = _members(layers, batch, hidden)
    assignments = _assignments(members, batch.partition)
    there = [layer for layer in layers if layer is not None]
    bank = join([layer.bank(linear, hidden.dtype) for layer in there], void=True)
    dropped_TD = dropped(hidden_TD, _rate(members, batch.partition))
    adapted = adapt_linear(Frozen.of(linear, hidden_TD), bank, assignments, dropped_TD)
    _record(members, adapted, batch.partition)
    return adapted.output_TO


class _Member(NamedTuple):
    """One adapter's part of a packed batch."""

    layer: Layer | None
    """None for the rows of the bare base."""
    token_t: Tensor
    routing: Routing | None
    first: int
    """Its first expert in the bank."""
    seed: int | None
    """Of its random numbers."""

    @property
    def experts(self) -> int:
        """How many experts it has there."""
        return _experts(self.layer)

    @property
    def rate(self) -> OwnRate:
        """Of its dropout."""
        on = self.layer is not None and self.layer.training
        return OwnRate(self.layer.rate if self.layer is not None and on else 0.0, self.seed)

    def choice(self, void: int) -> tuple[Tensor, Tensor]:
        """Experts in the bank and gates of its tokens, [t, K]."""
        if self.routing is not None:
            expert_tK, gate_tK = self.routing.expert_TK, self.routing.gate_TK
            return torch.where(expert_tK < self.experts, expert_tK + self.first, void), gate_tK
        expert_t1 = torch.full_like(self.token_t, void if self.layer is None else self.first)
        return expert_t1.unsqueeze(1), torch.ones_like(expert_t1).unsqueeze(1).float()


def _members(layers: Sequence[Layer | None], batch: PlacedBatch, hidden: Tensor) -> list[_Member]:
    """Each layer with its tokens and their routing."""
    partition, seeds = batch.partition, batch.partition.seeds(batch.place)
    hidden_TD = hidden.reshape(-1, hidden.shape[-1])
    length = hidden.shape[-2] if hidden.dim() == 3 else None
    members, first = [], 0
    for layer, token_t, seed in zip(layers, partition.tokens, seeds, strict=True):
        routing = None
        if layer is not None and layer.router is not None:
            sequences = _sequences(partition, token_t, length)
            with _drawing(layer.router, seed, hidden.device):
                routing = layer.router(hidden_TD[token_t], sequences)
        members.append(_Member(layer, token_t, routing, first, seed))
        first += members[-1].experts
    return members


def _sequences(partition: TokenPartition, token_t: Tensor, length: int | None) -> Sequences:
    """Which of an adapter's tokens are of one sequence."""
    if partition.sequences is not None:
        return partition.sequences[token_t]
    return length if length and len(token_t) % length == 0 else None


def _drawing(
    router: Router, seed: int | None, device: torch.device
) -> AbstractContextManager[None]:
    return nullcontext() if seed is None or not router.is_random else seeded(seed, device)


def _assignments(members: Sequence[_Member], partition: TokenPartition) -> ExpertAssignments:
    """Experts and gates token by token; slots that a member lacks are void with gate 0. The void
    is the joint bank's last expert."""
    experts = sum(member.experts for member in members)
    choices = [member.choice(experts) for member in members]
    slots = max(expert_tK.shape[1] for expert_tK, _ in choices)
    precision = reduce(torch.promote_types, (gate_tK.dtype for _, gate_tK in choices))
    expert_TK = torch.cat([pad(e, (0, slots - e.shape[1]), value=experts) for e, _ in choices])
    gate_TK = torch.cat([pad(g.to(precision), (0, slots - g.shape[1])) for _, g in choices])
    return ExpertAssignments(
        expert_TK[partition.place_T], gate_TK[partition.place_T], experts + 1, apart=True
    )


def _rate(members: Sequence[_Member], partition: TokenPartition) -> float | PartedRates:
    """The dropout's rate: of all tokens, or of each adapter's."""
    rates = [member.rate for member in members]
    if (len({*rates}) == 1 and rates[0].seed is None) or not any(one.rate for one in rates):
        return rates[0].rate
    parts = [(member.rate, len(member.token_t)) for member in members]
    return PartedRates(parts, partition.place_T)


def _block_banks(
    layers: Sequence[BlockExperts | None], block: FeedForward, hidden: Tensor
) -> dict[str, ExpertBank]:
    """The joint bank of every linear that any of the layers adapts."""
    blocks = [layer for layer in layers if layer is not None]
    each = [layer.banks(block, hidden.dtype) for layer in blocks]
    banks = {}
    for name in block.linears:
        if any(name in own for own in each):
            sizes = block.sizes(name)
            parts = [
                own.get(name) or _no_update(layer, sizes, hidden)
                for layer, own in zip(blocks, each, strict=True)
            ]
            banks[name] = join(parts, void=True)
    return banks


def _no_update(layer: BlockExperts, sizes: tuple[int, int], hidden: Tensor) -> ExpertBank:
    experts = _experts(layer)
    lora_A_NRI = hidden.new_zeros(experts, 1, sizes[0])
    return ExpertBank(lora_A_NRI, hidden.new_zeros(experts, sizes[1], 1), 1.0)


def _record(members: Sequence[_Member], adapted: Adapted, partition: TokenPartition) -> None:
    """Tell each member's recorder what its rows did."""
    for member in members:
        if member.layer is None or member.routing is None or member.layer.recorder is None:
            continue
        slots = member.routing.expert_TK.shape[1]
        recorder = member.layer.recorder
        terms = adapted.terms(member.layer.compared) if recorder.rank_space else ()
        own = [one_TKR[member.token_t, :slots] for one_TKR in terms]
        recorder.note(member.routing, own, partition.in_batch(member.token_t))


def _experts(layer: Layer | None) -> int:
    if layer is None:
        return 0
    return 1 if layer.router is None else layer.router.weight.shape[0]
