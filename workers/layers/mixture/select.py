"""The heart of block experts: the frozen inner outputs, seen by each token's K experts, and mixed.

    h_k = combine(x_i + B_i,e z_i,k ...)      mix = sum_k g_k h_k      z_k = A_e dropout(h_k)

for e = expert of slot k (MixLoRA, arXiv 2404.15159). Everything else of a block is matmuls.
Shapes: T tokens, K slots, N experts, R rank, F the block's inner width, O the size of an inner
linear's output (F, or 2 F for a fused one).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.layers.assignments import ExpertAssignments
from workers.layers.expert_bank import ExpertBank
from workers.layers.feed_forward import (
    FeedForward,
    fused_gate_first,
    fused_gate_last,
    gated,
    plain,
)
from workers.layers.kernels.mixture import Dropped, fused_mixture
from workers.layers.kernels.support import supports
from workers.layers.mixture.chunked import chunked_mixture
from workers.layers.ops import dropout
from workers.layers.ops.activations import activation_name
from workers.layers.ops.grouped_mm import is_aligned

PLAIN_PRODUCTS = 256 * 64
"""(token, expert) pairs times experts times rank up to which the plain way is no slower
(tests/benchmarks/crossover.py)."""


class Mode(NamedTuple):
    """How a layer runs."""

    rate: dropout.Rate
    """Dropout on the input of every A, 0 in inference."""
    fused: bool = True
    """Take the GPU kernel where there is one."""


class Inner(NamedTuple):
    """One inner linear: what the frozen one gives, and its experts' rank space."""

    frozen_TO: Tensor
    rank_space_TKR: Tensor | None
    """s A_e x, zero in void slots; None if this linear is not adapted."""
    bank: ExpertBank | None
    bias_O: Tensor | None
    """The frozen bias, which DoRA's magnitude leaves alone."""


class Mixed(NamedTuple):
    """What the experts made of the inner outputs."""

    mix_TF: Tensor
    rank_space_TKR: Tensor | None
    """A_e dropout(h_k) of the outer linear; None if it is not adapted."""


def mixture(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: ExpertBank | None,
    assignments: ExpertAssignments,
    mode: Mode,
) -> Mixed:
    """Choose the way by size and device; all give the same."""
    if all(one.bank is None for one in inner):
        way = _unadapted
    elif mode.fused and _is_fused(block, inner, outer, assignments, mode):
        return _fused(block, inner, outer, assignments, mode)
    else:
        way = plain_mixture if _is_plain(inner, outer, assignments) else _chunked
    width = block.sizes(block.outer[0])[0]
    rate = mode.rate if isinstance(mode.rate, float) else mode.rate.again()
    return way(block, inner, outer, assignments, dropout.draw(inner[0].frozen_TO, width, rate))


def plain_mixture(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: ExpertBank | None,
    assignments: ExpertAssignments,
    keep_TF: Tensor | None,
) -> Mixed:
    """One matmul pair with all experts, and torch's own gradients: for few tokens, torch.compile,
    DoRA."""
    hidden_TKF = block.combine(*(_plain_inner(one, assignments) for one in inner))
    mix_TF = torch.bmm(assignments.gate_TK.to(hidden_TKF.dtype).unsqueeze(1), hidden_TKF).squeeze(1)
    if outer is None:
        return Mixed(mix_TF, None)
    if keep_TF is not None:
        hidden_TKF = hidden_TKF * keep_TF.unsqueeze(1)
    return Mixed(mix_TF, outer.project_each(hidden_TKF, assignments))


def _unadapted(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: ExpertBank | None,
    assignments: ExpertAssignments,
    keep_TF: Tensor | None,
) -> Mixed:
    """No inner linear has experts: all slots of a token see one h."""
    hidden_TF = block.combine(*(one.frozen_TO for one in inner))
    mix_TF = hidden_TF * assignments.gate_TK.sum(1, keepdim=True).to(hidden_TF.dtype)
    if outer is None:
        return Mixed(mix_TF, None)
    kept_TF = hidden_TF if keep_TF is None else hidden_TF * keep_TF
    return Mixed(mix_TF, outer.project(kept_TF, assignments))


def _plain_inner(one: Inner, assignments: ExpertAssignments) -> Tensor:
    """An inner linear's output for every slot, [T, K, O]; [T, 1, O] if it has no experts."""
    frozen_T1O = one.frozen_TO.unsqueeze(1)
    if one.bank is None or one.rank_space_TKR is None:
        return frozen_T1O
    frozen_TKO = frozen_T1O.expand(-1, assignments.expert_TK.shape[1], -1)
    if one.bank.factor_NO is None:
        return one.bank.expand_each(one.rank_space_TKR, assignments, frozen_TKO)
    update_TKO = one.bank.expand_each(one.rank_space_TKR, assignments, torch.zeros_like(frozen_TKO))
    change_TKO = assignments.masked(
        (one.bank.factor_NO - 1).to(update_TKO.dtype)[assignments.expert_TK]
    )
    bare_T1O = frozen_T1O if one.bias_O is None else frozen_T1O - one.bias_O
    return frozen_T1O + update_TKO + change_TKO * (bare_T1O + update_TKO)


def _is_plain(
    inner: Sequence[Inner], outer: ExpertBank | None, assignments: ExpertAssignments
) -> bool:
    banks = [one.bank for one in inner if one.bank is not None]
    ranks = assignments.num_experts * max(bank.lora_B_NOR.shape[2] for bank in banks)
    if torch.compiler.is_compiling() or assignments.expert_TK.numel() * ranks <= PLAIN_PRODUCTS:
        return True
    sizes = [size for bank in banks for size in bank.lora_B_NOR.shape[1:]]
    sizes += outer.lora_A_NRI.shape[1:] if outer else ()
    aligned = is_aligned(*sizes, dtype=inner[0].frozen_TO.dtype)
    return not aligned or any(bank.factor_NO is not None for bank in banks)


def _chunked(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: ExpertBank | None,
    assignments: ExpertAssignments,
    keep_TF: Tensor | None,
) -> Mixed:
    updates = [
        (one.rank_space_TKR, None if one.bank is None else one.bank.lora_B_NOR) for one in inner
    ]
    frozen = [one.frozen_TO for one in inner]
    lora_A_NRF = None if outer is None else outer.lora_A_NRI
    return Mixed(*chunked_mixture(block, assignments, keep_TF, lora_A_NRF, frozen, updates))


def _is_fused(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: ExpertBank | None,
    assignments: ExpertAssignments,
    mode: Mode,
) -> bool:
    banks = [one.bank for one in inner if one.bank is not None]
    if not isinstance(mode.rate, float) or any(bank.factor_NO is not None for bank in banks):
        return False
    rank = max(bank.lora_A_NRI.shape[1] for bank in [*banks, *([outer] if outer else [])])
    slots, act = assignments.expert_TK.shape[1], activation_name(block.act)
    known = block.form in (plain, gated, fused_gate_first, fused_gate_last)
    return known and supports(inner[0].frozen_TO, assignments.num_experts, rank, slots, act)


def _fused(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: ExpertBank | None,
    assignments: ExpertAssignments,
    mode: Mode,
) -> Mixed:
    """Through the kernel, which wants gate and up apart."""
    frozen = [one.frozen_TO for one in inner]
    lora_B = [None if one.bank is None else one.bank.lora_B_NOR for one in inner]
    rank_space = [one.rank_space_TKR for one in inner]
    if block.form in (fused_gate_first, fused_gate_last):
        turn = 1 if block.form is fused_gate_first else -1
        frozen = list(frozen[0].chunk(2, dim=1))[::turn]
        lora_B = [half for both in lora_B if both is not None for half in both.chunk(2, dim=1)]
        lora_B, rank_space = lora_B[::turn], rank_space * 2
    act = activation_name(block.act)
    assert act is not None
    assert isinstance(mode.rate, float)
    mixed = fused_mixture(
        tuple(frozen),
        tuple(rank_space),
        assignments.expert_TK,
        assignments.gate_TK,
        tuple(lora_B),
        None if outer is None else outer.lora_A_NRI,
        act,
        Dropped.draw(mode.rate) if mode.rate else None,
    )
    return Mixed(*mixed)
