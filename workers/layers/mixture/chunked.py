"""The mixture of a block's experts over pairs sorted by expert, in chunks that stay in cache.

What `mixture` says, for many tokens: every pair meets its own expert's rank only, in grouped
matmuls, and the backward pass computes h_k once more instead of keeping it.
Shapes: T tokens, K slots, P = T * K pairs, p pairs of a chunk, N experts, n experts of a chunk,
R rank, F the block's inner width, O the size of an inner linear's output.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.layers.assignments import AssignmentChunk, ExpertAssignments, SortedAssignments
from workers.layers.feed_forward import FeedForward
from workers.layers.mixture import swiglu as pullback
from workers.layers.ops.grouped_mm import grouped_mm, grouped_outer

CHUNK_BYTES = 768 * 1024
"""Size of one tensor of a chunk on a CPU: a few of them stay in a core's second cache."""
CHUNK_ROWS = 16
"""Pairs of a chunk at least, however wide the block is."""
CHUNKS = 4
"""On a GPU, which wants large operations, into how many chunks the pairs are cut."""

Update = tuple[Tensor | None, Tensor | None]
"""An inner linear's rank space [T, K, R] (zero in void slots) and B [N, O, R], or no update."""


def chunked_mixture(  # noqa: PLR0913, PLR0917 -- what a block's experts are made of
    block: FeedForward,
    assignments: ExpertAssignments,
    keep_TF: Tensor | None,
    lora_A_NRF: Tensor | None,
    frozen: Sequence[Tensor],
    updates: Sequence[Update],
) -> tuple[Tensor, Tensor | None]:
    """mix [T, F], and the outer linear's rank space [T, K, R] where it has an A.

    `frozen` are the inner linears' outputs, `keep_TF` is dropout's factor on the outer A's input.
    """
    problem = _Problem(block, assignments.sorted_for(frozen[0]), len(frozen))
    tensors = [tensor for update in updates for tensor in update]
    outputs: tuple[Tensor, Tensor | None] = _ChunkedMixture.apply(  # type: ignore[no-untyped-call]
        problem, assignments.gate_TK, keep_TF, lora_A_NRF, *frozen, *tensors
    )
    return outputs


class _Problem(NamedTuple):
    """What of a mixture is no tensor."""

    block: FeedForward
    assignments: SortedAssignments
    inner: int

    def rows(self, like_TO: Tensor) -> int:
        """Pairs of a chunk."""
        if like_TO.device.type != "cpu":
            return max(-(-len(self.assignments.order_P) // CHUNKS), 1)
        return max(CHUNK_BYTES // (like_TO.shape[1] * like_TO.element_size()), CHUNK_ROWS)

    def chunks(self, like_TO: Tensor) -> Iterator[AssignmentChunk]:
        return self.assignments.chunks(self.rows(like_TO))


def gather(values_TO: Tensor, chunk: AssignmentChunk, into_pO: Tensor) -> Tensor:
    """The values of a chunk's tokens, in the memory of `into`."""
    space_pO = into_pO[: len(chunk.token_p)]
    return torch.index_select(values_TO, 0, chunk.token_p, out=space_pO)


class _ChunkedMixture(torch.autograd.Function):
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
            hidden_pF = pullback.combine(problem.block, rows.inner(chunk))
            if mix_TF is None:
                mix_TF = hidden_pF.new_zeros(len(gate_TK), hidden_pF.shape[1])
            if lora_A_NRF is not None:
                keep_pF = rows.keep(chunk)
                kept_pF = hidden_pF if keep_pF is None else hidden_pF * keep_pF
                lora_A_nFR = lora_A_NRF[chunk.experts].transpose(1, 2)
                outer_P.append(grouped_mm(kept_pF, lora_A_nFR, chunk.groups))
            mix_TF.index_add_(0, chunk.token_p, hidden_pF.mul_(rows.gate_P1[chunk.rows]))
        assert mix_TF is not None
        ctx.problem = problem
        ctx.save_for_backward(gate_TK, keep_TF, lora_A_NRF, *tensors)
        ctx.set_materialize_grads(False)
        if lora_A_NRF is None:
            return mix_TF, None
        return mix_TF, problem.assignments.put_back(torch.cat(outer_P), gate_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor, grad_TKR: Tensor | None) -> tuple[Tensor | None, ...]:
        gate_TK, keep_TF, lora_A_NRF, *tensors = ctx.saved_tensors
        problem: _Problem = ctx.problem
        rows = _Rows(problem, gate_TK, keep_TF, tensors)
        if grad_TF is None:
            width = problem.block.sizes(problem.block.outer[0])[0]
            grad_TF = rows.frozen[0].new_zeros(len(gate_TK), width)
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
        assignments = problem.assignments
        self.rank_space = [None if one is None else assignments.take(one) for one in adapted[::2]]
        self.gate_P1 = assignments.take(gate_TK.to(self.frozen[0].dtype)).unsqueeze(1)
        # Chunks take turns in the same memory: to get fresh pages costs more than to fill them.
        rows = problem.rows(self.frozen[0])
        self.space = [one.new_empty(rows, one.shape[1]) for one in self.frozen]
        self.keep_space = None if keep_TF is None else keep_TF.new_empty(rows, keep_TF.shape[1])

    def inner(self, chunk: AssignmentChunk) -> list[Tensor]:
        """The inner linears' outputs of a chunk's pairs, valid until the next chunk's."""
        outputs = []
        for frozen_TO, space_pO, rank_space_PR, lora_B_NOR in zip(
            self.frozen, self.space, self.rank_space, self.lora_B, strict=True
        ):
            output_pO = gather(frozen_TO, chunk, space_pO)
            if rank_space_PR is not None and lora_B_NOR is not None:
                lora_B_nRO = lora_B_NOR[chunk.experts].transpose(1, 2)
                output_pO += grouped_mm(rank_space_PR[chunk.rows], lora_B_nRO, chunk.groups)
            outputs.append(output_pO)
        return outputs

    def keep(self, chunk: AssignmentChunk) -> Tensor | None:
        """Dropout's factor of a chunk's tokens, valid until the next chunk's."""
        if self.keep_TF is None or self.keep_space is None:
            return None
        return gather(self.keep_TF, chunk, self.keep_space)


class _Gradients:
    """Gradients of a mixture's inputs, added up chunk by chunk."""

    def __init__(
        self, rows: _Rows, lora_A_NRF: Tensor | None, grad_TF: Tensor, grad_TKR: Tensor | None
    ) -> None:
        self.rows, self.lora_A_NRF, self.grad_TF = rows, lora_A_NRF, grad_TF
        self.grad_PR = None if grad_TKR is None else rows.problem.assignments.take(grad_TKR)
        self.gate_P = torch.empty_like(rows.gate_P1[:, 0])
        self.space = grad_TF.new_empty(rows.problem.rows(rows.frozen[0]), grad_TF.shape[1])
        self.lora_A = None if lora_A_NRF is None else torch.zeros_like(lora_A_NRF)
        self.frozen = [torch.zeros_like(one) for one in rows.frozen]
        self.rank_space = [
            None if one is None else torch.empty_like(one) for one in rows.rank_space
        ]
        self.lora_B = [None if one is None else torch.zeros_like(one) for one in rows.lora_B]

    def add(self, chunk: AssignmentChunk) -> None:
        """Go back through one chunk."""
        inner = self.rows.inner(chunk)
        hidden_pF, pull_back = pullback.with_pullback(self.rows.problem.block, inner)
        for index, grad_pO in enumerate(pull_back(self._hidden(hidden_pF, chunk))):
            self._inner(index, grad_pO, chunk)

    def results(self) -> tuple[Tensor | None, ...]:
        """In the order of the function's inputs."""
        assignments, gate_TK = self.rows.problem.assignments, self.rows.gate_TK
        rank_space = (
            None if z is None else assignments.put_back(z, gate_TK) for z in self.rank_space
        )
        adapted = (grad for both in zip(rank_space, self.lora_B, strict=True) for grad in both)
        gate = assignments.put_back(self.gate_P, gate_TK).to(gate_TK.dtype)
        return gate, None, self.lora_A, *self.frozen, *adapted

    def _hidden(self, hidden_pF: Tensor, chunk: AssignmentChunk) -> Tensor:
        """Gradient of h_k; adds to that of the gates and of the outer A."""
        rows = self.rows
        grad_pF = gather(self.grad_TF, chunk, self.space)
        self.gate_P[chunk.rows] = torch.linalg.vecdot(grad_pF, hidden_pF)
        grad_pF *= rows.gate_P1[chunk.rows]
        if self.lora_A is None or self.lora_A_NRF is None or self.grad_PR is None:
            return grad_pF
        grad_pR, keep_pF = self.grad_PR[chunk.rows], rows.keep(chunk)
        outer_pF = grouped_mm(grad_pR, self.lora_A_NRF[chunk.experts], chunk.groups)
        if keep_pF is None:
            grad_pF += outer_pF
        else:
            grad_pF.addcmul_(outer_pF, keep_pF)
            hidden_pF *= keep_pF
        self.lora_A[chunk.experts] += grouped_outer(grad_pR, hidden_pF, chunk.groups)
        return grad_pF

    def _inner(self, index: int, grad_pO: Tensor, chunk: AssignmentChunk) -> None:
        """Add the gradient of one inner output to those of its parts."""
        self.frozen[index].index_add_(0, chunk.token_p, grad_pO)
        lora_B_NOR, rank_space_PR = self.rows.lora_B[index], self.rows.rank_space[index]
        into_PR, into_NOR = self.rank_space[index], self.lora_B[index]
        if lora_B_NOR is None or rank_space_PR is None or into_PR is None or into_NOR is None:
            return
        into_PR[chunk.rows] = grouped_mm(grad_pO, lora_B_NOR[chunk.experts], chunk.groups)
        update_nRO = grouped_outer(rank_space_PR[chunk.rows], grad_pO, chunk.groups)
        into_NOR[chunk.experts] += update_nRO.transpose(1, 2)
