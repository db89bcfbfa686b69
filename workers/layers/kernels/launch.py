"""Launches of the fused kernels: sizes, tiles, grids. `mixture.py` says how the kernels work.

Shapes: T tokens, F feed-forward width, E experts, K slots of a token, P = T * K pairs (token and
slot), R rank of the inner linears, Q of the outer one, S shares of F, C columns of a share.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

PROGRAMS = 1024
"""Programs wanted in a grid over tokens and shares of F: a few for each of a GPU's processors."""


@cache
def interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter."""
    import triton

    return bool(triton.knobs.runtime.interpret)


class Given(NamedTuple):
    """The tensors that gradients flow to; None for a linear that is not there or not adapted."""

    gate_TF: Tensor
    up_TF: Tensor | None
    z_gate_TKR: Tensor | None
    z_up_TKR: Tensor | None
    weight_TK: Tensor
    b_gate_EFR: Tensor | None
    b_up_EFR: Tensor | None
    a_EQF: Tensor | None

    def prepared(self) -> "Given":
        """As the kernels read them: contiguous, but for the rows of frozen outputs (the halves of
        a fused projection are not copied); weights in float32."""
        wide = (t if t is None or t.stride(1) == 1 else t.contiguous() for t in self[:2])
        rest = (None if t is None else t.contiguous() for t in self[2:])
        given = Given(*wide, *rest)  # type: ignore[arg-type]  # None only where a field allows it.
        return given._replace(weight_TK=given.weight_TK.float())


class Tile(NamedTuple):
    """Rows (tokens or pairs) and features of a program's tile."""

    rows: int
    features: int


@dataclass(frozen=True)
class KernelSizes:
    """Sizes and constants of one call."""

    activation: str
    keep: tuple[float, int] | None
    """Dropout's probability and seed."""
    tokens: int
    width: int
    top_k: int
    experts: int
    rank: int
    rank_out: int
    dtype: torch.dtype

    @classmethod
    def of(cls, given: Given, activation: str, keep: tuple[float, int] | None) -> "KernelSizes":
        """Read the sizes off the tensors."""
        inner = [b for b in (given.b_gate_EFR, given.b_up_EFR) if b is not None]
        outer = [] if given.a_EQF is None else [given.a_EQF]
        return cls(
            activation=activation,
            keep=keep,
            tokens=len(given.gate_TF),
            width=given.gate_TF.shape[1],
            top_k=given.weight_TK.shape[1],
            experts=max((len(matrix) for matrix in inner + outer), default=0),
            rank=inner[0].shape[2] if inner else 1,
            rank_out=outer[0].shape[1] if outer else 1,
            dtype=given.gate_TF.dtype,
        )

    def token_tile(self, sums: int) -> Tile:
        """For a kernel that holds `sums` rank-space sums of each token in registers."""
        return Tile(token_rows(self.dtype, sums), 32)

    def pair_tile(self) -> Tile:
        """For the kernel over the pairs of one expert."""
        return Tile(16, 32) if self.dtype is torch.float32 else Tile(32, 64)

    def shares(self, tile: Tile) -> tuple[int, int, int]:
        """Tiles of tokens, shares of F, and tiles of a share.

        The interpreter runs programs in turn, and should meet shares of several tiles.
        """
        rows, columns = _ceil(self.tokens, tile.rows), _ceil(self.width, tile.features)
        wanted = max(1, (2 if interpreted() else PROGRAMS) // max(1, rows))
        steps = _ceil(columns, min(columns, wanted))
        return rows, _ceil(columns, steps), steps

    def arguments(self, given: Given) -> dict[str, Any]:
        """What all kernels take."""
        import triton.language as tl

        operand = getattr(tl, str(self.dtype).removeprefix("torch."))
        drop, seed = self.keep or (0.0, 0)
        return {
            "gate_ptr": given.gate_TF,
            "up_ptr": given.up_TF,
            "z_gate_ptr": given.z_gate_TKR,
            "z_up_ptr": given.z_up_TKR,
            "b_gate_ptr": given.b_gate_EFR,
            "b_up_ptr": given.b_up_EFR,
            "a_ptr": given.a_EQF,
            "weight_ptr": given.weight_TK,
            "F": self.width,
            "R": self.rank,
            "Q": self.rank_out,
            "gate_stride": given.gate_TF.stride(0),
            "up_stride": 0 if given.up_TF is None else given.up_TF.stride(0),
            "seed": seed,
            "drop": drop,
            "K": self.top_k,
            "RP": padded(self.rank),
            "QP": padded(self.rank_out),
            "ACT": self.activation,
            "DROP": self.keep is not None,
            "OPERAND": operand,
            "MULTIPLY": tl.float32 if interpreted() and operand == tl.bfloat16 else operand,
            "enable_fp_fusion": True,
        }


def token_rows(dtype: torch.dtype, sums: int) -> int:
    """Tokens of a tile whose rank-space sums, so many of each, are in registers.

    float32 is multiplied outside of the tensor cores, in more registers.
    """
    if dtype is torch.float32:
        return 16
    return 64 if sums <= 64 else 32 if sums <= 128 else 16


def padded(rank: int) -> int:
    """`tl.dot` takes powers of two from 16 on."""
    return max(16, 1 << (rank - 1).bit_length())


def _ceil(size: int, part: int) -> int:
    return -(-size // part)


def launch_forward(
    job: KernelSizes, given: Given, expert_TK: Tensor, order_T: Tensor
) -> tuple[Tensor, Tensor | None]:
    """mix [T, F] and z_out [T, K, Q]."""
    from workers.layers.kernels.forward_kernels import forward_kernel

    tile = job.token_tile(job.top_k * padded(job.rank_out) if given.a_EQF is not None else 0)
    rows, shares, steps = job.shares(tile)
    mix_TF = given.gate_TF.new_empty(job.tokens, job.width)
    share_STKQ = None
    if given.a_EQF is not None:
        share_STKQ = _float32(mix_TF, shares, job.tokens, job.top_k, job.rank_out)
    if job.tokens:
        forward_kernel[(rows, shares)](
            expert_ptr=expert_TK,
            order_ptr=order_T,
            mix_ptr=mix_TF,
            share_ptr=share_STKQ,
            T=job.tokens,
            E=job.experts,
            steps=steps,
            BT=tile.rows,
            BF=tile.features,
            **job.arguments(given),
        )
    return mix_TF, None if share_STKQ is None else share_STKQ.sum(0).to(job.dtype)


def launch_backward_tokens(
    job: KernelSizes,
    given: Given,
    expert_TK: Tensor,
    order_T: Tensor,
    dmix_TF: Tensor,
    dz_out_TKQ: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of gate and up [T, F], their rank space [T, K, R] and the weights [T, K]."""
    from workers.layers.kernels.backward_kernels import backward_tokens_kernel

    ranks = [0 if b is None else job.rank for b in (given.b_gate_EFR, given.b_up_EFR)]
    tile = job.token_tile(job.top_k * sum(padded(rank) for rank in ranks if rank))
    rows, shares, steps = job.shares(tile)
    dgate_TF = dmix_TF.new_empty(job.tokens, job.width)
    dup_TF = None if given.up_TF is None else torch.empty_like(dgate_TF)
    share_STKC = _float32(dmix_TF, shares, job.tokens, job.top_k, 1 + sum(ranks))
    if job.tokens:
        backward_tokens_kernel[(rows, shares)](
            expert_ptr=expert_TK,
            order_ptr=order_T,
            dmix_ptr=dmix_TF,
            dz_out_ptr=dz_out_TKQ,
            dgate_ptr=dgate_TF,
            dup_ptr=dup_TF,
            share_ptr=share_STKC,
            T=job.tokens,
            E=job.experts,
            C=share_STKC.shape[-1],
            steps=steps,
            BT=tile.rows,
            BF=tile.features,
            **job.arguments(given),
        )
    dweight_TK1, dz_gate_TKR, dz_up_TKR = share_STKC.sum(0).split_with_sizes([1, *ranks], -1)
    return (
        dgate_TF,
        dup_TF,
        dz_gate_TKR if ranks[0] else None,
        dz_up_TKR if ranks[1] else None,
        dweight_TK1.squeeze(-1),
    )


def launch_backward_experts(
    job: KernelSizes, given: Given, expert_TK: Tensor, dmix_TF: Tensor, dz_out_TKQ: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of gate's and up's B [E, F, R] and of the outer linear's A [E, Q, F]."""
    from workers.layers.kernels.backward_kernels import backward_experts_kernel

    expert_P, pair_P = torch.sort(expert_TK.flatten(), stable=True)
    bounds = torch.arange(job.experts + 1, device=expert_P.device)
    matrices = (given.b_gate_EFR, given.b_up_EFR, None if dz_out_TKQ is None else given.a_EQF)
    grads = [None if matrix is None else torch.empty_like(matrix) for matrix in matrices]
    tile = job.pair_tile()
    backward_experts_kernel[(job.experts, _ceil(job.width, tile.features))](
        pair_ptr=pair_P,
        start_ptr=torch.searchsorted(expert_P, bounds),
        dmix_ptr=dmix_TF,
        dz_out_ptr=dz_out_TKQ,
        db_gate_ptr=grads[0],
        db_up_ptr=grads[1],
        da_ptr=grads[2],
        BP=tile.rows,
        BF=tile.features,
        **job.arguments(given),
    )
    return tuple(grads)


def _float32(tensor: Tensor, *shape: int) -> Tensor:
    return tensor.new_empty(shape, dtype=torch.float32)
