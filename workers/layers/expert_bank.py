"""The low-rank experts of one linear, all those that a batch may meet, and their two matmuls.

A bank holds the experts of one adapter, or of several that share a batch.
Shapes: T tokens, K slots, P pairs, N experts, R rank, I and O the linear's input and output size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from workers.layers.assignments import ExpertAssignments, SortedAssignments
from workers.layers.ops.grouped_mm import grouped_mm, grouped_outer, is_aligned, waits

DENSE_RANKS = 128
"""Experts times rank up to which all experts' products with a token are cheaper than its own
experts' (tests/benchmarks/crossover.py)."""


@dataclass(frozen=True, eq=False)
class ExpertBank:
    """Stacked experts, in the precision of the activations."""

    lora_A_NRI: Tensor
    lora_B_NOR: Tensor
    scale: float | Tensor
    """Factor s of the update; a tensor [N] where adapters differ."""
    factor_NO: Tensor | None = None
    """DoRA's factor of every output feature, m / |W + s B A|, at least float32: in training it
    stays so close to 1 that bfloat16 would lose it."""
    kept_B_SO: Tensor | None = None
    """`stacked_B_SO` of a bank that serves."""

    @property
    def stacked_A_SI(self) -> Tensor:  # noqa: N802
        """All A matrices as one, S = N * R."""
        return self.lora_A_NRI.flatten(0, 1)

    @property
    def stacked_B_SO(self) -> Tensor:  # noqa: N802
        """All B matrices as one, transposed: a copy, which a bank that serves keeps."""
        if self.kept_B_SO is not None:
            return self.kept_B_SO
        return self.lora_B_NOR.transpose(1, 2).flatten(0, 1)

    def for_service(self) -> "ExpertBank":
        """The same with B transposed once and the scale inside of A: a copy and a product less."""
        if isinstance(self.scale, Tensor):
            return replace(self, kept_B_SO=self.stacked_B_SO)
        scaled_NRI = self.lora_A_NRI * self.scale
        return replace(self, lora_A_NRI=scaled_NRI, scale=1.0, kept_B_SO=self.stacked_B_SO)

    @property
    def change(self) -> "ExpertBank":
        """How DoRA changes output features, as experts of rank 1: B is its factor less 1."""
        assert self.factor_NO is not None
        lora_B_NO1 = (self.factor_NO - 1).to(self.lora_B_NOR.dtype).unsqueeze(-1)
        return ExpertBank(self.lora_A_NRI[:, :1], lora_B_NO1, 1.0)

    def with_A(self, lora_A_NRI: Tensor) -> "ExpertBank":  # noqa: N802
        """The same with other A matrices."""
        return replace(self, lora_A_NRI=lora_A_NRI)

    def with_B(self, lora_B_NOR: Tensor) -> "ExpertBank":  # noqa: N802
        """The same with other B matrices."""
        return replace(self, lora_B_NOR=lora_B_NOR, kept_B_SO=None)

    def scaled(self, rank_space_TKR: Tensor, assignments: ExpertAssignments) -> Tensor:
        """s z of every pair, zero in void slots."""
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = scale[assignments.expert_TK].unsqueeze(-1).to(rank_space_TKR.dtype)
        elif scale == 1:
            return assignments.masked(rank_space_TKR)
        return assignments.masked(rank_space_TKR) * scale

    def project(self, input_TI: Tensor, assignments: ExpertAssignments) -> Tensor:
        """A_e x of every pair: [T, K, R]."""
        return self._project(input_TI, assignments, self._dense(assignments))

    def project_each(self, input_TKI: Tensor, assignments: ExpertAssignments) -> Tensor:
        """A_e x of every pair, each of which has an x of its own: [T, K, R]."""
        rank_space_P1R = self._project(
            input_TKI.flatten(0, 1), assignments.each, not assignments.apart
        )
        return rank_space_P1R.view(*input_TKI.shape[:2], self.lora_A_NRI.shape[1])

    def expand(
        self, rank_space_TKR: Tensor, assignments: ExpertAssignments, onto_TO: Tensor
    ) -> Tensor:
        """onto + sum_k B_e z of every token: [T, O]."""
        return self._expand(rank_space_TKR, assignments, onto_TO, self._dense(assignments))

    def expand_each(
        self, rank_space_TKR: Tensor, assignments: ExpertAssignments, onto_TKO: Tensor
    ) -> Tensor:
        """onto + B_e z of every pair: [T, K, O]."""
        rank_space_P1R = rank_space_TKR.flatten(0, 1).unsqueeze(1)
        onto_PO = onto_TKO.flatten(0, 1)
        return self._expand(
            rank_space_P1R, assignments.each, onto_PO, not assignments.apart
        ).view_as(onto_TKO)

    def _project(self, input_TI: Tensor, assignments: ExpertAssignments, dense: bool) -> Tensor:
        if dense:
            all_TS = functional.linear(input_TI, self.stacked_A_SI)
            return assignments.pick(all_TS.view(-1, *self.lora_A_NRI.shape[:2]))
        return _apply(_Project, input_TI, self.lora_A_NRI, assignments)

    def _expand(
        self, rank_space_TKR: Tensor, assignments: ExpertAssignments, onto_TO: Tensor, dense: bool
    ) -> Tensor:
        if dense:
            return onto_TO.addmm(
                assignments.spread_sum(rank_space_TKR).flatten(1), self.stacked_B_SO
            )
        return onto_TO + _apply(_Expand, rank_space_TKR, self.lora_B_NOR, assignments)

    def _dense(self, assignments: ExpertAssignments) -> bool:
        """Whether a product of all tokens with all experts is cheaper, or a wait less, and is
        right: zeros stand where a token has not the expert."""
        if assignments.apart:
            return False
        if torch.compiler.is_compiling():
            return True
        experts, width_out, rank = self.lora_B_NOR.shape
        small = experts * rank <= DENSE_RANKS or experts <= assignments.expert_TK.shape[1]
        like, told = self.lora_A_NRI, assignments.is_told
        aligned = is_aligned(rank, like.shape[2], width_out, dtype=like.dtype)
        return small or not aligned or (waits(like) and not told)


def project_all(
    banks: Sequence[ExpertBank], input_TI: Tensor, assignments: ExpertAssignments
) -> list[Tensor]:
    """s A_e x of every pair, [T, K, R], for each of the banks, whose experts read one input.

    Their A matrices are stacked: one product of twice the rank costs less than two.
    """
    if not banks:
        return []
    together = banks[0].with_A(torch.cat([bank.lora_A_NRI for bank in banks], dim=1))
    ranks = [bank.lora_A_NRI.shape[1] for bank in banks]
    parts = torch.split(together.project(input_TI, assignments), ranks, dim=-1)
    return [bank.scaled(part_TKR, assignments) for bank, part_TKR in zip(banks, parts, strict=True)]


def join(banks: Sequence[ExpertBank], void: bool) -> ExpertBank:
    """The experts of several banks of one linear, one after the other, ranks padded with zeros; if
    there is a `void`, it is the last: an expert of zeros."""
    if void:
        like = banks[0]
        lora_A_1RI, lora_B_1OR = (
            one.new_zeros(1, *one.shape[1:]) for one in (like.lora_A_NRI, like.lora_B_NOR)
        )
        banks = [*banks, ExpertBank(lora_A_1RI, lora_B_1OR, like.scale)]
    if len(banks) == 1:
        return banks[0]
    rank = max(bank.lora_A_NRI.shape[1] for bank in banks)
    factor_NO = None
    if any(bank.factor_NO is not None for bank in banks):
        factor_NO = torch.cat([_factor(bank) for bank in banks])
    return ExpertBank(
        torch.cat([_pad(bank.lora_A_NRI, 1, rank) for bank in banks]),
        torch.cat([_pad(bank.lora_B_NOR, 2, rank) for bank in banks]),
        _scales(banks),
        factor_NO,
    )


def _scales(banks: Sequence[ExpertBank]) -> float | Tensor:
    """The factor of all experts, or of each."""
    if not any(isinstance(bank.scale, Tensor) or bank.scale != banks[0].scale for bank in banks):
        return banks[0].scale
    return torch.cat([_scale_N(bank) for bank in banks])


def _scale_N(bank: ExpertBank) -> Tensor:  # noqa: N802
    """Filled where it lies: a number from the host would make a GPU wait."""
    if isinstance(bank.scale, Tensor):
        return bank.scale
    device = bank.lora_B_NOR.device
    return torch.full((len(bank.lora_B_NOR),), bank.scale, dtype=torch.float64, device=device)


def _factor(bank: ExpertBank) -> Tensor:
    return torch.ones_like(bank.lora_B_NOR[..., 0]) if bank.factor_NO is None else bank.factor_NO


def _pad(stacked: Tensor, dim: int, rank: int) -> Tensor:
    missing = rank - stacked.shape[dim]
    return functional.pad(stacked, (0, 0, 0, missing) if dim == 1 else (0, missing))


def _apply(function: Any, values: Tensor, weight: Tensor, assignments: ExpertAssignments) -> Tensor:
    pairs = assignments.sorted_for(values)
    output: Tensor = function.apply(values, weight, pairs, assignments.expert_TK)
    return output


class _Project(torch.autograd.Function):
    """z = A_e x, sorted by expert; keeps x, not its copies."""

    @staticmethod
    def forward(
        ctx: Any,
        input_TI: Tensor,
        lora_A_NRI: Tensor,
        assignments: SortedAssignments,
        expert_TK: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(input_TI, lora_A_NRI)
        ctx.assignments = assignments
        input_PI = input_TI.index_select(0, assignments.token_P)
        rank_space_PR = grouped_mm(input_PI, lora_A_NRI.transpose(1, 2), assignments.groups)
        return assignments.put_back(rank_space_PR, expert_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TKR: Tensor) -> tuple[Tensor | None, ...]:
        input_TI, lora_A_NRI = ctx.saved_tensors
        assignments: SortedAssignments = ctx.assignments
        grad_PR = assignments.take(grad_TKR)
        input_PI = input_TI.index_select(0, assignments.token_P)
        grad_NRI = grouped_outer(grad_PR, input_PI, assignments.groups)
        if not ctx.needs_input_grad[0]:
            return None, grad_NRI, None, None
        grad_PI = grouped_mm(grad_PR, lora_A_NRI, assignments.groups)
        grad_TI = torch.zeros_like(input_TI).index_add_(0, assignments.token_P, grad_PI)
        return grad_TI, grad_NRI, None, None


class _Expand(torch.autograd.Function):
    """sum_k B_e z, sorted by expert."""

    @staticmethod
    def forward(
        ctx: Any,
        rank_space_TKR: Tensor,
        lora_B_NOR: Tensor,
        assignments: SortedAssignments,
        expert_TK: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rank_space_TKR, lora_B_NOR, expert_TK)
        ctx.assignments = assignments
        output_PO = grouped_mm(
            assignments.take(rank_space_TKR), lora_B_NOR.transpose(1, 2), assignments.groups
        )
        output_TO = output_PO.new_zeros(len(rank_space_TKR), output_PO.shape[1])
        return output_TO.index_add_(0, assignments.token_P, output_PO)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        rank_space_TKR, lora_B_NOR, expert_TK = ctx.saved_tensors
        assignments: SortedAssignments = ctx.assignments
        grad_PO = grad_TO.index_select(0, assignments.token_P)
        grad_PR = grouped_mm(grad_PO, lora_B_NOR, assignments.groups)
        # The smaller matrix on the left: its transpose is what gets copied.
        grad_NRO = grouped_outer(assignments.take(rank_space_TKR), grad_PO, assignments.groups)
        return assignments.put_back(grad_PR, expert_TK), grad_NRO.transpose(1, 2), None, None
