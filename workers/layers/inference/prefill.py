"""Block experts for many tokens without gradients on a CPU: prompts, and whatever decodes beside.

The sums are the plain mixture's. Pairs are sorted by expert, and what an expert adds to its rows is
added where these lie; all else is done for all pairs of a chunk at once, in few operations.
Shapes: T tokens, t of a chunk, P a chunk's pairs, N experts, R rank, I inner linears, D model
width, F the block's inner width, O the size of an inner linear's output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from workers.layers.assignments import ExpertAssignments
from workers.layers.expert_bank import DENSE_RANKS
from workers.layers.feed_forward import FeedForward
from workers.layers.inference.frozen_linear import frozen_product
from workers.layers.inference.prepared import Prepared
from workers.layers.inference.row_sums import row_sums
from workers.layers.mixture.swiglu import combine

CHUNK_BYTES = 2**23
"""Of the hidden states of a chunk's pairs: some stay in a processor's last cache."""
CHUNK_TOKENS = 32
"""Of a chunk at least, however wide the block is."""


def prefill_tokens(
    block: FeedForward, made: Prepared, hidden_TD: Tensor, assignments: ExpertAssignments
) -> Tensor:
    """The block with its experts, up to what it does behind its outer linear: [T, D]."""
    tokens, slots = assignments.expert_TK.shape
    frozen = [frozen_product(linear, hidden_TD) for linear in block.inner.values()]
    mix_TF = hidden_TD.new_empty(tokens, block.sizes(block.outer[0])[0])
    update_TD = torch.empty_like(hidden_TD)
    step = max(CHUNK_BYTES // (slots * mix_TF[0].nbytes), CHUNK_TOKENS)
    for start in range(0, tokens, step):
        rows = slice(start, start + step)
        chunk = _Chunk(made, assignments if tokens <= step else assignments.part(rows))
        hidden_PF = chunk.hidden(block, hidden_TD[rows], [one[rows] for one in frozen])
        mix_TF[rows] = chunk.mix(hidden_PF)
        if made.outer_B_SD is not None:
            update_TD[rows] = chunk.update(hidden_PF, made.outer_B_SD)
    output_TD = frozen_product(block.outer[1], mix_TF)
    return output_TD if made.outer_B_SD is None else output_TD.add_(update_TD)


class _Chunk:
    """Some tokens' pairs, sorted by expert."""

    def __init__(self, made: Prepared, assignments: ExpertAssignments) -> None:
        self._made = made
        order_P, self._token_P, _, ends = assignments.sorted
        assert ends is not None, "known on a CPU"
        self._groups = [
            (expert, slice(start, end))
            for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
            if start < end
        ]
        self._place_P, self._start_t = _by_token(order_P, self._token_P, len(assignments.gate_TK))
        self._expert_P = assignments.expert_TK.flatten()[order_P]
        self._gate_P = assignments.gate_TK.flatten()[order_P[self._place_P]]
        """Token by token."""

    def hidden(self, block: FeedForward, hidden_tD: Tensor, frozen: Sequence[Tensor]) -> Tensor:
        """h of every pair, [P, F]."""
        made = self._made
        rank_space_PIR = self._inner_rank_space(hidden_tD)
        lora_B_INRO = made.inner_B_SO.view(made.inner, made.experts, made.rank, -1)
        outputs = [one.index_select(0, self._token_P) for one in frozen]
        for i, output_PO in enumerate(outputs):
            for expert, rows in self._groups:
                output_PO[rows].addmm_(rank_space_PIR[rows, i], lora_B_INRO[i, expert])
        return combine(block, outputs)

    def mix(self, hidden_PF: Tensor) -> Tensor:
        """sum_k g_k h_k of every token, [t, F]."""
        weight_P = self._gate_P.to(hidden_PF.dtype)
        return row_sums(self._place_P, weight_P, hidden_PF, self._start_t)

    def update(self, hidden_PF: Tensor, lora_B_SD: Tensor) -> Tensor:
        """What the outer linear's experts add, [t, D]."""
        made = self._made
        assert made.outer_A_SF is not None
        lora_A_NRF = made.outer_A_SF.view(made.experts, made.rank, -1)
        rank_space_RP = hidden_PF.new_empty(made.rank, len(hidden_PF))
        for expert, rows in self._groups:  # the tall factor on the right: up to a third faster
            torch.mm(lora_A_NRF[expert], hidden_PF[rows].T, out=rank_space_RP[:, rows])
        weighed_PR = rank_space_RP.T[self._place_P].mul_(self._gate_P.unsqueeze(1))
        row_PR = made.place_INR[0].index_select(0, self._expert_P[self._place_P])
        return row_sums(row_PR, weighed_PR, lora_B_SD, self._start_t * made.rank)

    def _inner_rank_space(self, hidden_tD: Tensor) -> Tensor:
        """A x of every inner linear and pair, [P, I, R]."""
        made = self._made
        sizes = made.inner, made.experts, made.rank
        if made.experts * made.rank <= DENSE_RANKS:
            all_tINR = functional.linear(hidden_tD, made.inner_A_SD).view(-1, *sizes)
            return all_tINR[self._token_P, :, self._expert_P]
        lora_A_INRD = made.inner_A_SD.view(*sizes, -1)
        hidden_PD = hidden_tD.index_select(0, self._token_P)
        rank_space_IRP = hidden_PD.new_empty(made.inner, made.rank, len(hidden_PD))
        for i, own_RP in enumerate(rank_space_IRP):
            for expert, rows in self._groups:
                torch.mm(lora_A_INRD[i, expert], hidden_PD[rows].T, out=own_RP[:, rows])
        return rank_space_IRP.permute(2, 0, 1)


def _by_token(order_P: Tensor, token_P: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Where each pair lies among the sorted ones, token by token, and each token's first."""
    place_P = order_P.numpy().argsort()
    start_t = token_P.numpy()[place_P].searchsorted(range(tokens))
    return torch.from_numpy(place_P), torch.from_numpy(start_t)
