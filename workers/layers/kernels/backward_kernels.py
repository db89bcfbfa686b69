"""Triton kernels of the fused block experts: the two backward ones. Legend: `forward_kernels`."""

import triton
import triton.language as tl

from workers.layers.kernels.forward_kernels import (
    activate,
    dot,
    dot_where,
    dropout,
    expert_after,
    matrix_a,
    matrix_b,
    rank_rows,
    replaced,
    updated,
)


# fmt: off
@triton.jit(do_not_specialize=["seed", "steps"])
def backward_tokens_kernel(
    gate_ptr, up_ptr, z_gate_ptr, z_up_ptr, b_gate_ptr, b_up_ptr, a_ptr,
    weight_ptr, expert_ptr, order_ptr, dmix_ptr, dz_out_ptr, dgate_ptr, dup_ptr, share_ptr,
    T, E, gate_stride, up_stride, seed, drop, steps, C: tl.constexpr,
    F: tl.constexpr, R: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, RP: tl.constexpr, QP: tl.constexpr, ACT: tl.constexpr, DROP: tl.constexpr,
    OPERAND: tl.constexpr, MULTIPLY: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
):
    # fmt: on
    """dgate, dup [T, F] and the shares [S, P, C] of (dweight, dz_gate, dz_up), side by side.

    Program (tile of tokens, share of F), as in the forward.
    """
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    inside = row < T
    token = tl.load(order_ptr + row, mask=inside, other=0).to(tl.int32)
    start = token.to(tl.int64)[:, None]
    share = tl.program_id(1)
    dweight = ()
    dz_gate = ()
    dz_up = ()
    for _k in tl.static_range(K):
        dweight += (tl.zeros([BT], tl.float32),)
        dz_gate += (tl.zeros([BT, RP], tl.float32),)
        dz_up += (tl.zeros([BT, RP], tl.float32),)
    for step in tl.range(0, steps, disable_licm=True):
        first = (share * steps + step) * BF
        f = first + tl.arange(0, BF)
        mask = inside[:, None] & (f < F)[None, :]
        gate = tl.load(gate_ptr + start * gate_stride + f[None, :], mask=mask, other=0.0)
        dmix = tl.load(dmix_ptr + start * F + f[None, :], mask=mask, other=0.0)
        dgate = tl.zeros([BT, BF], tl.float32)
        if up_ptr is not None:
            up = tl.load(up_ptr + start * up_stride + f[None, :], mask=mask, other=0.0)
            dup = tl.zeros([BT, BF], tl.float32)
        if DROP:
            factor = dropout(token, first, seed, drop, BT, BF)
        for k in tl.static_range(K):
            pair = token * K + k
            expert = tl.load(expert_ptr + pair, mask=inside, other=E).to(tl.int32)
            weight = tl.load(weight_ptr + pair, mask=inside, other=0.0)
            g = gate.to(tl.float32)
            u = g
            if up_ptr is not None:
                u = up.to(tl.float32)
            dh = tl.zeros([BT, BF], tl.float32)
            g, u, dh = updated(
                g, u, dh, z_gate_ptr, z_up_ptr, dz_out_ptr, b_gate_ptr, b_up_ptr, a_ptr,
                pair, expert, f, E, F, R, Q, RP, QP, OPERAND, MULTIPLY,
            )  # fmt: skip
            if DROP:
                dh *= factor
            dh += weight[:, None] * dmix
            h, slope = activate(g, ACT)
            du = dh * h
            dg = dh * slope
            if up_ptr is not None:
                dup += du
                h *= u
                dg *= u
            dgate += dg
            dweight = replaced(dweight, k, dweight[k] + tl.sum(dmix * h, 1))
            total_gate = dz_gate[k]
            total_up = dz_up[k]
            e = expert_after(-1, expert, E)
            while e < E:
                here = expert == e
                if b_gate_ptr is not None:
                    b = matrix_b(b_gate_ptr, e, f, F, R, RP)
                    total_gate = dot_where(here, dg, b, total_gate, OPERAND, MULTIPLY)
                if b_up_ptr is not None:
                    b = matrix_b(b_up_ptr, e, f, F, R, RP)
                    total_up = dot_where(here, du, b, total_up, OPERAND, MULTIPLY)
                e = expert_after(e, expert, E)
            dz_gate = replaced(dz_gate, k, total_gate)
            dz_up = replaced(dz_up, k, total_up)
        tile = start * F + f[None, :]
        tl.store(dgate_ptr + tile, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
        if up_ptr is not None:
            tl.store(dup_ptr + tile, dup.to(dup_ptr.dtype.element_ty), mask=mask)
    r = tl.arange(0, RP)
    mask = inside[:, None] & (r < R)[None, :]
    for k in tl.static_range(K):
        place = share_ptr + (share.to(tl.int64) * T * K + token * K + k) * C
        tl.store(place, dweight[k], mask=inside)
        places = place[:, None] + 1 + r[None, :]
        if b_gate_ptr is not None:
            tl.store(places, dz_gate[k], mask=mask)
            places += R
        if b_up_ptr is not None:
            tl.store(places, dz_up[k], mask=mask)


# fmt: off
@triton.jit(do_not_specialize=["seed"])
def backward_experts_kernel(
    gate_ptr, up_ptr, z_gate_ptr, z_up_ptr, b_gate_ptr, b_up_ptr, a_ptr,
    weight_ptr, pair_ptr, start_ptr, dmix_ptr, dz_out_ptr, db_gate_ptr, db_up_ptr, da_ptr,
    gate_stride, up_stride, seed, drop,
    F: tl.constexpr, R: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, RP: tl.constexpr, QP: tl.constexpr, ACT: tl.constexpr, DROP: tl.constexpr,
    OPERAND: tl.constexpr, MULTIPLY: tl.constexpr, BP: tl.constexpr, BF: tl.constexpr,
):
    # fmt: on
    """dB [E, F, R] and dA [E, Q, F]; program (expert, tile of F), over the expert's pairs.

    Tiles are [BF, BP]: what one dot has summed up is the left operand of the next, which the
    tensor cores take from registers.
    """
    expert = tl.program_id(0)
    first = tl.program_id(1) * BF
    f = first + tl.arange(0, BF)
    begin = tl.load(start_ptr + expert).to(tl.int32)
    end = tl.load(start_ptr + expert + 1).to(tl.int32)
    if b_gate_ptr is not None:
        b_gate = matrix_b(b_gate_ptr, expert, f, F, R, RP)
        db_gate = tl.zeros([BF, RP], tl.float32)
    if b_up_ptr is not None:
        b_up = matrix_b(b_up_ptr, expert, f, F, R, RP)
        db_up = tl.zeros([BF, RP], tl.float32)
    if dz_out_ptr is not None:
        a = tl.trans(matrix_a(a_ptr, expert, f, F, Q, QP))
        da = tl.zeros([BF, QP], tl.float32)
    for at in range(begin, end, BP):
        place = at + tl.arange(0, BP)
        inside = place < end
        pair = tl.load(pair_ptr + place, mask=inside, other=0).to(tl.int32)
        token = pair // K
        start = token.to(tl.int64)[None, :]
        mask = (f < F)[:, None] & inside[None, :]
        weight = tl.load(weight_ptr + pair, mask=inside, other=0.0)
        dmix = tl.load(dmix_ptr + start * F + f[:, None], mask=mask, other=0.0)
        g = tl.load(gate_ptr + start * gate_stride + f[:, None], mask=mask, other=0.0)
        g = g.to(tl.float32)
        if b_gate_ptr is not None:
            z_gate = rank_rows(z_gate_ptr, pair, inside, R, RP)
            g = dot(b_gate, tl.trans(z_gate), g, OPERAND, MULTIPLY)
        h, slope = activate(g, ACT)
        if up_ptr is not None:
            u = tl.load(up_ptr + start * up_stride + f[:, None], mask=mask, other=0.0)
            u = u.to(tl.float32)
            if b_up_ptr is not None:
                z_up = rank_rows(z_up_ptr, pair, inside, R, RP)
                u = dot(b_up, tl.trans(z_up), u, OPERAND, MULTIPLY)
            du = h
            h *= u
            slope *= u
        dh = weight[None, :] * dmix
        if dz_out_ptr is not None:
            dz_out = rank_rows(dz_out_ptr, pair, inside, Q, QP)
            through_a = tl.zeros([BF, BP], tl.float32)
            through_a = dot(a, tl.trans(dz_out), through_a, OPERAND, MULTIPLY)
            if DROP:
                factor = tl.trans(dropout(token, first, seed, drop, BP, BF))
                through_a *= factor
                h *= factor
            dh += through_a
            da = dot(h, dz_out, da, OPERAND, MULTIPLY)
        if b_gate_ptr is not None:
            db_gate = dot(dh * slope, z_gate, db_gate, OPERAND, MULTIPLY)
        if b_up_ptr is not None:
            db_up = dot(dh * du, z_up, db_up, OPERAND, MULTIPLY)
    r = tl.arange(0, RP)
    mask = (f < F)[:, None] & (r < R)[None, :]
    places = expert.to(tl.int64) * F * R + f[:, None] * R + r[None, :]
    if b_gate_ptr is not None:
        tl.store(db_gate_ptr + places, db_gate.to(db_gate_ptr.dtype.element_ty), mask=mask)
    if b_up_ptr is not None:
        tl.store(db_up_ptr + places, db_up.to(db_up_ptr.dtype.element_ty), mask=mask)
    if dz_out_ptr is not None:
        q = tl.arange(0, QP)
        mask = (f < F)[:, None] & (q < Q)[None, :]
        places = expert.to(tl.int64) * F * Q + q[None, :] * F + f[:, None]
        tl.store(da_ptr + places, da.to(da_ptr.dtype.element_ty), mask=mask)
