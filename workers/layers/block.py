"""A frozen linear or block with the experts of one bank: the maths of the modules in `experts`.

Shapes: T tokens, K slots, N experts, R rank, D model width, I and O a linear's input and output.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from workers.layers.assignments import ExpertAssignments
from workers.layers.expert_bank import ExpertBank, project_all
from workers.layers.feed_forward import FeedForward
from workers.layers.inference.decode import decode_tokens
from workers.layers.inference.frozen_linear import frozen_product
from workers.layers.inference.prefill import prefill_tokens
from workers.layers.inference.prepared import Prepared
from workers.layers.mixture.select import Inner, Mode, mixture
from workers.layers.ops import dropout

ITSELF = ""
"""Name of the one projection that linear experts have."""


class Adapted(NamedTuple):
    """What an adapted place gives, and what losses want to know of it."""

    output_TO: Tensor
    rank_space: Mapping[str, Tensor]
    """A_e dropout(x) of each slot's expert, [T, K, R], by name of the routed projection; zero in
    void slots, and up to a factor (the contrastive loss normalises)."""

    def terms(self, names: Iterable[str]) -> tuple[Tensor, ...]:
        """The rank space of these projections."""
        return tuple(self.rank_space[name] for name in names)


def plain_lora(
    linear: nn.Module, bank: ExpertBank, hidden_TI: Tensor, dropped_TI: Tensor
) -> Tensor:
    """y = W x + s B A dropout(x); with DoRA its features are scaled."""
    frozen = Frozen.of(linear, hidden_TI)
    frozen_TO = frozen.output_TO
    rank_space_TR = nn.functional.linear(dropped_TI, bank.stacked_A_SI)
    if bank.scale != 1:
        rank_space_TR = rank_space_TR * cast(float, bank.scale)
    if bank.factor_NO is None:
        kept_B_SO = bank.kept_B_SO
        lora_B_RO = bank.lora_B_NOR[0].T if kept_B_SO is None else kept_B_SO
        return frozen_TO.addmm(rank_space_TR, lora_B_RO)
    update_TO = rank_space_TR @ bank.lora_B_NOR[0].T
    change_1O = (bank.factor_NO - 1).to(frozen_TO.dtype)
    return frozen_TO + update_TO + change_1O * (frozen.without_bias_TO + update_TO)


class Frozen(NamedTuple):
    """What a frozen linear gives, and its bias, which DoRA's magnitude leaves alone."""

    output_TO: Tensor
    bias_O: Tensor | None

    @classmethod
    def of(cls, linear: nn.Module, hidden_TI: Tensor) -> "Frozen":
        """Run the linear."""
        return cls(frozen_product(linear, hidden_TI), _bias(linear))

    @property
    def without_bias_TO(self) -> Tensor:  # noqa: N802
        """W x."""
        return self.output_TO if self.bias_O is None else self.output_TO - self.bias_O


def adapt_linear(
    frozen: Frozen, bank: ExpertBank, assignments: ExpertAssignments, dropped_TI: Tensor
) -> Adapted:
    """y = W x + s sum_k g_k B_e A_e dropout(x), e the expert of slot k."""
    (rank_space_TKR,) = project_all([bank], dropped_TI, assignments)
    gate_TK1 = assignments.gate_TK.to(rank_space_TKR.dtype).unsqueeze(-1)
    if bank.factor_NO is not None:
        no_TO = torch.zeros_like(frozen.output_TO)
        change_TO = bank.change.expand(assignments.masked(gate_TK1), assignments, no_TO)
        frozen = Frozen(frozen.output_TO + change_TO * frozen.without_bias_TO, None)
        factor_NO1 = bank.factor_NO.to(bank.lora_B_NOR.dtype).unsqueeze(-1)
        bank = bank.with_B(bank.lora_B_NOR * factor_NO1)
    output_TO = bank.expand(rank_space_TKR * gate_TK1, assignments, frozen.output_TO)
    return Adapted(output_TO, {ITSELF: rank_space_TKR})


def adapt_block(
    block: FeedForward,
    banks: Mapping[str, ExpertBank],
    assignments: ExpertAssignments,
    hidden_TD: Tensor,
    mode: Mode,
) -> Adapted:
    """The frozen block with the experts in `banks`, by name of the linear; without what the block
    does behind its outer linear."""
    reading = {name: banks[name] for name in block.inner if name in banks}
    projected = project_all(
        list(reading.values()), dropout.dropped(hidden_TD, mode.rate), assignments
    )
    rank_space = dict(zip(reading, projected, strict=True))
    inner = [
        Inner(linear(hidden_TD), rank_space.get(name), banks.get(name), _bias(linear))
        for name, linear in block.inner.items()
    ]
    name, linear = block.outer
    bank = banks.get(name)
    mix_TF, outer_TKR = mixture(block, inner, bank, assignments, mode)
    output_TD = with_weighed_bias(linear, linear(mix_TF), assignments.gate_TK)
    if bank is not None and outer_TKR is not None:
        rank_space[name] = outer_TKR = bank.scaled(outer_TKR, assignments)
        gate_TK1 = assignments.gate_TK.to(outer_TKR.dtype).unsqueeze(-1)
        output_TD = bank.expand(outer_TKR * gate_TK1, assignments, output_TD)
    return Adapted(output_TD, rank_space)


def adapt_prepared(
    block: FeedForward, made: Prepared, hidden_TD: Tensor, assignments: ExpertAssignments
) -> Tensor:
    """`adapt_block` in inference."""
    way = decode_tokens if len(hidden_TD) <= made.decode_tokens else prefill_tokens
    output_TD = way(block, made, hidden_TD, assignments)
    return with_weighed_bias(block.outer[1], output_TD, assignments.gate_TK)


def with_weighed_bias(linear: nn.Module, output_TO: Tensor, gate_TK: Tensor) -> Tensor:
    """The outer linear's output with its bias once for each expert, times its gate: the gates sum
    to 1 unless they are raw."""
    bias_O = _bias(linear)
    if bias_O is None:
        return output_TO
    excess_T1 = gate_TK.sum(-1, keepdim=True) - 1
    return output_TO + excess_T1.to(output_TO.dtype) * bias_O


def _bias(linear: nn.Module) -> Tensor | None:
    bias_O = getattr(linear, "bias", None)
    return bias_O if isinstance(bias_O, Tensor) else None
