"""The heart of block experts: the frozen inner outputs, seen by each token's K experts, and mixed.

    h_k = combine(x_i + B_i,e z_i,k ...)      mix = sum_k g_k h_k      z_k = A_e dropout(h_k)

for e = expert of slot k (MixLoRA, arXiv 2404.15159). Everything else of a block is matmuls.
Shapes: T tokens, K slots, P = T * K pairs, N experts, R rank, F the block's inner width, O the size
of an inner linear's output (F, or 2 F for a fused one).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workers.layers import dropout
from workers.layers.bank import Bank
from workers.layers.feed_forward import FeedForward
from workers.layers.grouped import grouped_mm, grouped_outer, is_aligned
from workers.layers.pairs import Chunk, Pairs, SortedPairs

CHUNK_BYTES = 768 * 1024
"""Size of one tensor of a chunk on a CPU: a few of them stay in a core's second cache."""
CHUNK_ROWS = 16
"""Pairs of a chunk at least, however wide the block is."""
CHUNKS = 4
"""On a GPU, which wants large operations, into how many chunks the pairs are cut."""
FEW_PAIRS = 32
"""Up to so many pairs the plain way is faster (tests/benchmarks/crossover.py)."""


class Inner(NamedTuple):
    """One inner linear: what the frozen one gives, and its experts' rank space."""

    frozen_TO: Tensor
    rank_space_TKR: Tensor | None
    """s A_e x, zero in void slots; None if this linear is not adapted."""
    bank: Bank | None


class Mixed(NamedTuple):
    """What the experts made of the inner outputs."""

    mix_TF: Tensor
    rank_space_TKR: Tensor | None
    """A_e dropout(h_k) of the outer linear; None if it is not adapted."""


def mixture(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: Bank | None,
    pairs: Pairs,
    rate: float | Tensor,
) -> Mixed:
    """Choose the way by size and device; all give the same. `rate` is the dropout's."""
    kept = dropout.draw(inner[0].frozen_TO, block.sizes(block.outer[0])[0], rate)
    keep_TF = None if kept is None else kept.mask_TI
    if all(one.bank is None for one in inner):
        mixed = _unadapted(block, inner, outer, pairs, keep_TF)
    elif _is_plain(inner, outer, pairs):
        mixed = plain_mixture(block, inner, outer, pairs, keep_TF)
    else:
        mixed = sorted_mixture(block, inner, outer, pairs, keep_TF)
    if kept is None or mixed.rank_space_TKR is None:
        return mixed
    return mixed._replace(rank_space_TKR=kept.gained(mixed.rank_space_TKR))


def plain_mixture(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: Bank | None,
    pairs: Pairs,
    keep_TF: Tensor | None,
) -> Mixed:
    """One masked matmul pair and torch's own gradients: for few tokens, torch.compile, DoRA."""
    hidden_TKF = block.combine(*(_plain_inner(one, pairs) for one in inner))
    mix_TF = torch.bmm(pairs.gate_TK.to(hidden_TKF.dtype).unsqueeze(1), hidden_TKF).squeeze(1)
    if outer is None:
        return Mixed(mix_TF, None)
    if keep_TF is not None:
        hidden_TKF = hidden_TKF * keep_TF.unsqueeze(1)
    all_TKS = hidden_TKF @ outer.lora_A_NRI.flatten(0, 1).T
    all_TKNR = all_TKS.view(*all_TKS.shape[:2], *outer.lora_A_NRI.shape[:2])
    return Mixed(mix_TF, pairs.pick_each(all_TKNR))


def sorted_mixture(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: Bank | None,
    pairs: Pairs,
    keep_TF: Tensor | None,
) -> Mixed:
    """Pairs sorted by expert, in chunks; the backward pass computes h_k once more."""
    problem = _Problem(block, pairs.sorted, len(inner), outer is not None)
    adapted = ((one.rank_space_TKR, one.bank.lora_B_NOR if one.bank else None) for one in inner)
    outputs = _SortedMixture.apply(  # type: ignore[no-untyped-call]
        problem,
        pairs.gate_TK,
        keep_TF,
        outer.lora_A_NRI if outer else None,
        *(one.frozen_TO for one in inner),
        *(tensor for pair in adapted for tensor in pair),
    )
    return Mixed(*outputs)


def _unadapted(
    block: FeedForward,
    inner: Sequence[Inner],
    outer: Bank | None,
    pairs: Pairs,
    keep_TF: Tensor | None,
) -> Mixed:
    """No inner linear has experts: all slots of a token see one h."""
    hidden_TF = block.combine(*(one.frozen_TO for one in inner))
    mix_TF = hidden_TF * pairs.gate_TK.sum(1, keepdim=True).to(hidden_TF.dtype)
    if outer is None:
        return Mixed(mix_TF, None)
    kept_TF = hidden_TF if keep_TF is None else hidden_TF * keep_TF
    return Mixed(mix_TF, outer.project(kept_TF, pairs))


def _plain_inner(one: Inner, pairs: Pairs) -> Tensor:
    """An inner linear's output for every slot, [T, K, O]; [T, 1, O] if it has no experts."""
    frozen_T1O = one.frozen_TO.unsqueeze(1)
    if one.bank is None or one.rank_space_TKR is None:
        return frozen_T1O
    stacked_SO = one.bank.lora_B_NOR.transpose(1, 2).flatten(0, 1)
    update_TKO = pairs.spread(one.rank_space_TKR).flatten(2) @ stacked_SO
    if one.bank.magnitude_NO is None:
        return frozen_T1O + update_TKO
    magnitude_TKO = one.bank.magnitude_NO[pairs.expert_TK]
    if pairs.real_TK1 is not None:
        magnitude_TKO = torch.where(pairs.real_TK1, magnitude_TKO, 1)
    return (frozen_T1O + update_TKO) * magnitude_TKO


def _is_plain(inner: Sequence[Inner], outer: Bank | None, pairs: Pairs) -> bool:
    if torch.compiler.is_compiling() or pairs.expert_TK.numel() <= FEW_PAIRS:
        return True
    banks = [one.bank for one in inner if one.bank is not None]
    sizes = [size for bank in banks for size in bank.lora_B_NOR.shape[1:]]
    sizes += outer.lora_A_NRI.shape[1:] if outer else ()
    aligned = is_aligned(*sizes, dtype=inner[0].frozen_TO.dtype)
    return not aligned or any(bank.magnitude_NO is not None for bank in banks)


class _Problem(NamedTuple):
    """What of a mixture is no tensor."""

    block: FeedForward
    pairs: SortedPairs
    inner: int
    has_outer: bool

    def chunks(self, like_TO: Tensor) -> Iterator[Chunk]:
        if like_TO.device.type == "cpu":
            rows = max(CHUNK_BYTES // (like_TO.shape[1] * like_TO.element_size()), CHUNK_ROWS)
        else:
            rows = -(-len(self.pairs.order_P) // CHUNKS)
        return self.pairs.chunks(rows)


class _SortedMixture(torch.autograd.Function):
    """Keeps its inputs only: the frozen outputs, rank-space tensors and weights.

    `tensors` are the frozen outputs of the inner linears, then (z, B) of each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        problem: _Problem,
        gate_TK: Tensor,
        keep_TF: Tensor | None,
        lora_A_NRF: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        rows = _Rows(problem, gate_TK, keep_TF, tensors)
        mix_TF = None
        outer_P: list[Tensor] = []
        for chunk in problem.chunks(rows.frozen[0]):
            hidden_pF = problem.block.combine(*rows.inner(chunk))
            if mix_TF is None:
                mix_TF = hidden_pF.new_zeros(len(gate_TK), hidden_pF.shape[1])
            if lora_A_NRF is not None:
                kept_pF = rows.kept(hidden_pF, chunk)
                lora_A_nFR = lora_A_NRF[chunk.experts].transpose(1, 2)
                outer_P.append(grouped_mm(kept_pF, lora_A_nFR, chunk.end_n))
            mix_TF.index_add_(0, chunk.token_p, hidden_pF.mul_(rows.gate_P1[chunk.rows]))
        assert mix_TF is not None
        ctx.problem = problem
        ctx.save_for_backward(gate_TK, keep_TF, lora_A_NRF, *tensors)
        ctx.set_materialize_grads(False)
        if lora_A_NRF is None:
            return mix_TF, None
        return mix_TF, problem.pairs.put_back(torch.cat(outer_P), gate_TK)

    @staticmethod
    def backward(ctx: Any, grad_TF: Tensor, grad_TKR: Tensor | None) -> tuple[Tensor | None, ...]:
        gate_TK, keep_TF, lora_A_NRF, *tensors = ctx.saved_tensors
        problem: _Problem = ctx.problem
        rows = _Rows(problem, gate_TK, keep_TF, tensors)
        grads = _Gradients(rows, lora_A_NRF, grad_TF, grad_TKR)
        for chunk in problem.chunks(rows.frozen[0]):
            grads.add(chunk)
        return (None, *grads.results())


class _Rows:
    """The inputs of a mixture, sorted by expert where they are small."""

    def __init__(
        self,
        problem: _Problem,
        gate_TK: Tensor,
        keep_TF: Tensor | None,
        tensors: Sequence[Tensor | None],
    ) -> None:
        frozen, adapted = tensors[: problem.inner], tensors[problem.inner :]
        self.problem = problem
        self.gate_TK, self.keep_TF = gate_TK, keep_TF
        self.frozen = [tensor for tensor in frozen if tensor is not None]
        self.lora_B = list(adapted[1::2])
        pairs = problem.pairs
        self.rank_space = [None if one is None else pairs.take(one) for one in adapted[::2]]
        self.gate_P1 = pairs.take(gate_TK.to(self.frozen[0].dtype)).unsqueeze(1)

    def inner(self, chunk: Chunk) -> list[Tensor]:
        """The inner linears' outputs of a chunk's pairs, in memory of their own."""
        outputs = []
        for frozen_TO, rank_space_PR, lora_B_NOR in zip(
            self.frozen, self.rank_space, self.lora_B, strict=True
        ):
            output_pO = frozen_TO.index_select(0, chunk.token_p)
            if rank_space_PR is not None and lora_B_NOR is not None:
                lora_B_nRO = lora_B_NOR[chunk.experts].transpose(1, 2)
                output_pO += grouped_mm(rank_space_PR[chunk.rows], lora_B_nRO, chunk.end_n)
            outputs.append(output_pO)
        return outputs

    def kept(self, hidden_pF: Tensor, chunk: Chunk) -> Tensor:
        """What dropout leaves of the hidden states, or of their gradient."""
        if self.keep_TF is None:
            return hidden_pF
        return hidden_pF * self.keep_TF.index_select(0, chunk.token_p)


class _Gradients:
    """Gradients of a mixture's inputs, added up chunk by chunk."""

    def __init__(
        self, rows: _Rows, lora_A_NRF: Tensor | None, grad_TF: Tensor, grad_TKR: Tensor | None
    ) -> None:
        self.rows, self.lora_A_NRF, self.grad_TF = rows, lora_A_NRF, grad_TF
        self.grad_PR = None if grad_TKR is None else rows.problem.pairs.take(grad_TKR)
        self.gate_P = torch.empty_like(rows.gate_P1[:, 0])
        self.lora_A = None if lora_A_NRF is None else torch.zeros_like(lora_A_NRF)
        self.frozen = [torch.zeros_like(one) for one in rows.frozen]
        self.rank_space = [
            None if one is None else torch.empty_like(one) for one in rows.rank_space
        ]
        self.lora_B = [None if one is None else torch.zeros_like(one) for one in rows.lora_B]

    def add(self, chunk: Chunk) -> None:
        """Go back through one chunk."""
        inner = [one.requires_grad_() for one in self.rows.inner(chunk)]
        with torch.enable_grad():
            hidden_pF = self.rows.problem.block.combine(*inner)
        grad_pF = self._hidden(hidden_pF.detach(), chunk)
        for index, grad_pO in enumerate(torch.autograd.grad(hidden_pF, inner, grad_pF)):
            self._inner(index, grad_pO, chunk)

    def results(self) -> tuple[Tensor | None, ...]:
        """In the order of the function's inputs."""
        pairs, gate_TK = self.rows.problem.pairs, self.rows.gate_TK
        rank_space = (None if z is None else pairs.put_back(z, gate_TK) for z in self.rank_space)
        adapted = (grad for both in zip(rank_space, self.lora_B, strict=True) for grad in both)
        gate = pairs.put_back(self.gate_P, gate_TK).to(gate_TK.dtype)
        return gate, None, self.lora_A, *self.frozen, *adapted

    def _hidden(self, hidden_pF: Tensor, chunk: Chunk) -> Tensor:
        """Gradient of h_k; adds to that of the gates and of the outer A."""
        rows = self.rows
        grad_pF = self.grad_TF.index_select(0, chunk.token_p)
        self.gate_P[chunk.rows] = torch.linalg.vecdot(grad_pF, hidden_pF)
        grad_pF *= rows.gate_P1[chunk.rows]
        if self.lora_A is None or self.lora_A_NRF is None or self.grad_PR is None:
            return grad_pF
        grad_pR, kept_pF = self.grad_PR[chunk.rows], rows.kept(hidden_pF, chunk)
        self.lora_A[chunk.experts] += grouped_outer(grad_pR, kept_pF, chunk.end_n)
        outer_pF = grouped_mm(grad_pR, self.lora_A_NRF[chunk.experts], chunk.end_n)
        return grad_pF.add_(rows.kept(outer_pF, chunk))

    def _inner(self, index: int, grad_pO: Tensor, chunk: Chunk) -> None:
        """Add the gradient of one inner output to those of its parts."""
        self.frozen[index].index_add_(0, chunk.token_p, grad_pO)
        lora_B_NOR, rank_space_PR = self.rows.lora_B[index], self.rows.rank_space[index]
        into_PR, into_NOR = self.rank_space[index], self.lora_B[index]
        if lora_B_NOR is None or rank_space_PR is None or into_PR is None or into_NOR is None:
            return
        into_PR[chunk.rows] = grouped_mm(grad_pO, lora_B_NOR[chunk.experts], chunk.end_n)
        update_nRO = grouped_outer(rank_space_PR[chunk.rows], grad_pO, chunk.end_n)
        into_NOR[chunk.experts] += update_nRO.transpose(1, 2)
