"""The mixture of a block's experts in one pass over its activations, by Triton kernels.

For token t, slot k and e = expert_TK[t, k], over frozen outputs gate and up (ungated: h = act(g)):

    g = gate_t + B_gate[e] z_gate[t,k];  u = up_t + B_up[e] z_up[t,k];  h = act(g) * u
    mix_t = sum_k weight[t,k] h;         z_out[t,k] = A_outer[e] dropout(h)

Nothing of size [T * K, F] reaches memory, in neither direction; backward computes h again.

Tokens are sorted by their first two experts, so that a tile of tokens meets few. For each slot a
program walks over the experts that its tile chose, one small `tl.dot` each, whose result counts in
the rows of that expert only: what is not finite stays with who chose it. Slots add up in registers,
and so do the rank-space sums over a program's share of F; the few shares are added at the end.
Backward has two kernels: the same walk gives the gradients of activations, rank space and weights;
the other goes over pairs sorted by expert, one expert's B and A and their gradients in registers.
Programs that read the same columns run side by side, so a token's K pairs find them in the L2
cache. No atomics: the same bits on every run. It moves [T, F] 3 times forward and 8 times backward;
plain LoRA's separate operations about twice that. The tiles come from what the compiler reports for
sm_90 (no spills to speak of at K = 2, R = 16; two to four programs on a processor); they have not
been timed on a GPU yet.

Shapes: T tokens, F feed-forward width, E experts, K slots of a token, R rank of the inner linears,
Q of the outer one.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workers.layers.kernels.launch import (
    Given,
    KernelSizes,
    launch_backward_experts,
    launch_backward_tokens,
    launch_forward,
)


class Dropped(NamedTuple):
    """Dropout before the outer linear's A; one mask [T, F] for a token's K experts."""

    probability: float
    seed: int

    @classmethod
    def draw(cls, probability: float) -> "Dropped":
        """A seed from torch's CPU generator: reproducible, and no wait for the device."""
        return cls(probability, int(torch.randint(2**31 - 1, ())))


def fused_mixture(
    inner: tuple[Tensor, ...],
    rank_space: tuple[Tensor | None, ...],
    expert_TK: Tensor,
    gate_TK: Tensor,
    lora_B: tuple[Tensor | None, ...],
    lora_A_outer: Tensor | None,
    activation: str,
    keep: Dropped | None = None,
) -> tuple[Tensor, Tensor | None]:
    """mix [T, F] and z_out [T, K, Q] (None without an outer A), in the type of the frozen outputs.

    inner: (gate, up) or (fc1,), [T, F]; rank_space: s * A_e x of each, [T, K, R]; lora_B: their B,
    [E, F, R]; lora_A_outer: [E, Q, F]. None stands for a linear that is not adapted. An expert id
    of E or above is void: no update, z_out zero. Differentiable (once) in all but `expert_TK`.
    """
    gated = len(inner) > 1
    given = Given(
        gate_TF=inner[0],
        up_TF=inner[1] if gated else None,
        z_gate_TKR=rank_space[0],
        z_up_TKR=rank_space[1] if gated else None,
        weight_TK=gate_TK,
        b_gate_EFR=lora_B[0],
        b_up_EFR=lora_B[1] if gated else None,
        a_EQF=lora_A_outer,
    )
    mixed: tuple[Tensor, Tensor | None] = _FusedMixture.apply(  # type: ignore[no-untyped-call]
        expert_TK, activation, keep, *given
    )
    return mixed


class _FusedMixture(torch.autograd.Function):
    """Keeps its inputs and the order of the tokens."""

    @staticmethod
    def forward(
        ctx: Any, expert_TK: Tensor, activation: str, keep: Dropped | None, *tensors: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See `fused_mixture`; `tensors` are the fields of `Given`."""
        given = Given(*tensors).prepared()
        job = KernelSizes.of(given, activation, keep)
        expert_TK = expert_TK.contiguous()
        order_T = _token_order(expert_TK, job.experts)
        ctx.save_for_backward(expert_TK, order_T, *given)
        ctx.job = job
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        ctx.set_materialize_grads(False)
        with _on(given.gate_TF):
            return launch_forward(job, given, expert_TK, order_T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dmix_TF: Tensor | None, dz_out_TKQ: Tensor | None) -> Any:
        """Gradients of the fields of `Given`; kernels that nobody needs do not run."""
        expert_TK, order_T, *tensors = ctx.saved_tensors
        given, job = Given(*tensors), ctx.job
        if dmix_TF is None:
            dmix_TF = given.gate_TF.new_zeros(given.gate_TF.shape)
        arriving = dmix_TF.contiguous(), None if dz_out_TKQ is None else dz_out_TKQ.contiguous()
        activations, matrices = ctx.needs_input_grad[3:8], ctx.needs_input_grad[8:]
        grads: list[Tensor | None] = [None] * 8
        with _on(given.gate_TF):
            if any(activations):
                grads[:5] = launch_backward_tokens(job, given, expert_TK, order_T, *arriving)
            if any(matrices):
                grads[5:] = launch_backward_experts(job, given, expert_TK, *arriving)
        typed = zip(grads, ctx.dtypes, strict=True)
        return None, None, None, *(None if grad is None else grad.to(kind) for grad, kind in typed)


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _token_order(expert_TK: Tensor, experts: int) -> Tensor:
    """Tokens by their first two experts."""
    key_T = expert_TK[:, 0]
    if expert_TK.shape[1] > 1:
        key_T = torch.add(expert_TK[:, 1], key_T, alpha=experts + 1)
    return torch.argsort(key_T, stable=True)
