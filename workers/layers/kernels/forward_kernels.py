"""Triton kernels of the fused block experts: what all share, and the forward.

Imported where Triton is installed only, by `launch.py`; with TRITON_INTERPRET=1 in the environment
before Triton's first import they run on the CPU.

Shapes: T tokens, F feed-forward width, E experts, K slots of a token, P = T * K pairs (token and
slot), R rank of the inner linears, Q of the outer one, S shares of F; BT, BP, BF: tokens, pairs,
features of a tile; RP, QP: R, Q padded to a power of two that `tl.dot` takes. A name in `_ptr` is a
tensor in memory, or None for what is not there or not adapted. Memory of size T * F is addressed
in 64 bits, the rest in 32. All sums are float32.

What `tl.dot` takes is rounded to OPERAND and multiplied as MULTIPLY: the same type on a GPU; the
interpreter, which cannot multiply bfloat16, multiplies float32.
"""

import triton
import triton.language as tl


@triton.jit
def dot(left, right, total, OPERAND: tl.constexpr, MULTIPLY: tl.constexpr):
    """total + left @ right."""
    left, right = left.to(OPERAND).to(MULTIPLY), right.to(OPERAND).to(MULTIPLY)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def dot_where(here, left, right, total, OPERAND: tl.constexpr, MULTIPLY: tl.constexpr):
    """As `dot` in rows that are `here`; the others keep their total, whatever `right` holds: zero
    times another adapter's infinity would not be zero."""
    return tl.where(here[:, None], dot(left, right, total, OPERAND, MULTIPLY), total)


@triton.jit
def activate(x, ACT: tl.constexpr):
    """The activation and its derivative."""
    if ACT == "silu":
        s = tl.sigmoid(x)
        value, slope = x * s, s * (1 + x * (1 - s))
    elif ACT == "gelu":
        half = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        value, slope = x * half, half + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACT == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))  # (1 + tanh(a)) / 2
        value = x * s
        slope = s + value * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    else:
        tl.static_assert(ACT == "relu")
        value, slope = tl.maximum(x, 0.0), tl.where(x > 0, 1.0, 0.0)
    return value, slope


@triton.jit
def dropout(token, first, seed, drop, ROWS: tl.constexpr, BF: tl.constexpr):
    """Dropout's factor, [ROWS, BF] from feature `first` on: 0 or 1 / (1 - drop).

    It depends on seed, token and feature alone: every kernel and every tile size sees one mask.
    Philox gives four numbers at a time, here to four neighbours of a row.
    """
    group = first // 4 + tl.arange(0, BF // 4)
    zeros = tl.zeros([ROWS, BF // 4], tl.uint32)
    rows = zeros + token[:, None].to(tl.uint32)
    n0, n1, n2, n3 = tl.philox(seed, rows, zeros + group[None, :].to(tl.uint32), zeros, zeros)
    # Each join makes a new last dimension: (0, 2) with (1, 3) is 0, 1, 2, 3.
    number = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [ROWS, BF])
    return tl.where(tl.uint_to_uniform_float(number) >= drop, 1 / (1 - drop), 0.0)


@triton.jit
def rank_rows(ptr, pair, here, R: tl.constexpr, RP: tl.constexpr):
    """Rows [pairs, RP] of [P, R] where `here`, zeros elsewhere."""
    r = tl.arange(0, RP)
    mask = here[:, None] & (r < R)[None, :]
    return tl.load(ptr + pair[:, None] * R + r[None, :], mask=mask, other=0.0)


@triton.jit
def matrix_b(ptr, expert, f, F: tl.constexpr, R: tl.constexpr, RP: tl.constexpr):
    """B of one expert, [BF, RP] of [E, F, R]."""
    r = tl.arange(0, RP)
    mask = (f < F)[:, None] & (r < R)[None, :]
    return tl.load(
        ptr + expert.to(tl.int64) * F * R + f[:, None] * R + r[None, :], mask=mask, other=0.0
    )


@triton.jit
def matrix_a(ptr, expert, f, F: tl.constexpr, Q: tl.constexpr, QP: tl.constexpr):
    """The outer linear's A of one expert, [QP, BF] of [E, Q, F]."""
    q = tl.arange(0, QP)
    mask = (q < Q)[:, None] & (f < F)[None, :]
    return tl.load(
        ptr + expert.to(tl.int64) * F * Q + q[:, None] * F + f[None, :], mask=mask, other=0.0
    )


@triton.jit
def expert_after(last, expert, E):
    """The smallest expert above `last` that a tile's tokens chose, E if there is none."""
    return tl.min(tl.where(expert > last, expert, E), 0)


@triton.jit
def replaced(values, index: tl.constexpr, value):
    """The tuple with another value at `index`."""
    return values[:index] + (value,) + values[index + 1 :]


# fmt: off
@triton.jit
def updated(
    g, u, dh, z_gate_ptr, z_up_ptr, dz_out_ptr, b_gate_ptr, b_up_ptr, a_ptr,
    pair, expert, f, E, F: tl.constexpr, R: tl.constexpr, Q: tl.constexpr,
    RP: tl.constexpr, QP: tl.constexpr, OPERAND: tl.constexpr, MULTIPLY: tl.constexpr,
):
    # fmt: on
    """g, u and dh of one slot with the updates of the experts that the tile's tokens chose."""
    e = expert_after(-1, expert, E)
    while e < E:
        here = expert == e
        if b_gate_ptr is not None:
            z = rank_rows(z_gate_ptr, pair, here, R, RP)
            b = matrix_b(b_gate_ptr, e, f, F, R, RP)
            g = dot_where(here, z, tl.trans(b), g, OPERAND, MULTIPLY)
        if b_up_ptr is not None:
            z = rank_rows(z_up_ptr, pair, here, R, RP)
            b = matrix_b(b_up_ptr, e, f, F, R, RP)
            u = dot_where(here, z, tl.trans(b), u, OPERAND, MULTIPLY)
        if dz_out_ptr is not None:
            z = rank_rows(dz_out_ptr, pair, here, Q, QP)
            a = matrix_a(a_ptr, e, f, F, Q, QP)
            dh = dot_where(here, z, a, dh, OPERAND, MULTIPLY)
        e = expert_after(e, expert, E)
    return g, u, dh


# fmt: off
@triton.jit(do_not_specialize=["seed", "steps"])
def forward_kernel(
    gate_ptr, up_ptr, z_gate_ptr, z_up_ptr, b_gate_ptr, b_up_ptr, a_ptr,
    weight_ptr, expert_ptr, order_ptr, mix_ptr, share_ptr,
    T, E, gate_stride, up_stride, seed, drop, steps,
    F: tl.constexpr, R: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, RP: tl.constexpr, QP: tl.constexpr, ACT: tl.constexpr, DROP: tl.constexpr,
    OPERAND: tl.constexpr, MULTIPLY: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):
    # fmt: on
    """mix [T, F] and the shares [S, P, Q] of z_out; program (tile of tokens, share of F)."""
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    inside = row < T
    token = tl.load(order_ptr + row, mask=inside, other=0).to(tl.int32)
    start = token.to(tl.int64)[:, None]
    share = tl.program_id(1)
    z_out = ()
    for _k in tl.static_range(K):
        z_out += (tl.zeros([BT, QP], tl.float32),)
    for step in tl.range(0, steps, disable_licm=True):
        first = (share * steps + step) * BF
        f = first + tl.arange(0, BF)
        mask = inside[:, None] & (f < F)[None, :]
        gate = tl.load(gate_ptr + start * gate_stride + f[None, :], mask=mask, other=0.0)
        if up_ptr is not None:
            up = tl.load(up_ptr + start * up_stride + f[None, :], mask=mask, other=0.0)
        if DROP:
            factor = dropout(token, first, seed, drop, BT, BF)
        mix = tl.zeros([BT, BF], tl.float32)
        for k in tl.static_range(K):
            pair = token * K + k
            expert = tl.load(expert_ptr + pair, mask=inside, other=E).to(tl.int32)
            weight = tl.load(weight_ptr + pair, mask=inside, other=0.0)
            g = gate.to(tl.float32)
            u = g
            if up_ptr is not None:
                u = up.to(tl.float32)
            g, u, _dh = updated(
                g, u, g, z_gate_ptr, z_up_ptr, None, b_gate_ptr, b_up_ptr, a_ptr,
                pair, expert, f, E, F, R, Q, RP, QP, OPERAND, MULTIPLY,
            )  # fmt: skip
            h, _slope = activate(g, ACT)
            if up_ptr is not None:
                h *= u
            mix += weight[:, None] * h
            if a_ptr is not None:
                if DROP:
                    h *= factor
                total = z_out[k]
                e = expert_after(-1, expert, E)
                while e < E:
                    a = matrix_a(a_ptr, e, f, F, Q, QP)
                    total = dot_where(expert == e, h, tl.trans(a), total, OPERAND, MULTIPLY)
                    e = expert_after(e, expert, E)
                z_out = replaced(z_out, k, total)
        tile = start * F + f[None, :]
        tl.store(mix_ptr + tile, mix.to(mix_ptr.dtype.element_ty), mask=mask)
    if a_ptr is not None:
        q = tl.arange(0, QP)
        mask = inside[:, None] & (q < Q)[None, :]
        for k in tl.static_range(K):
            place = (share.to(tl.int64) * T * K + token * K + k) * Q
            tl.store(share_ptr + place[:, None] + q[None, :], z_out[k], mask=mask)
