"""RMS norms as one kernel forward and one back: torch's own on a GPU, where transformers writes
them as six operations of which several keep the whole input in float32.

Only those that prove to compute the same are replaced: families scale by the weight, by one more
than it, or not at all. Shapes: D width, `...` any leading sizes.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel

from workers.config.model import ModelSpec
from workers.config.parallel import ParallelSpec


class FusedNorm(nn.Module):
    """y = w x / sqrt(mean(x^2) + eps), in at least float32, rounded once."""

    def __init__(self, weight_D: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight_D
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        if hidden.dtype == self.weight.dtype:
            return rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        return self.weight * rms_norm(hidden, self.weight.shape, None, self.eps)


def wants_fused_norms(spec: ModelSpec, parallel: ParallelSpec, device: torch.device) -> bool:
    """Whether a base's norms are to be replaced. What cuts a base over workers holds on to the
    modules that it has cut."""
    return spec.fused_norms and device.type == "cuda" and not parallel.shards_base


def fuse_norms(model: PreTrainedModel) -> str | None:
    """Replace the model's RMS norms, under their names and with their weights; what was done, in
    half a sentence, or None where it has none."""
    same: dict[object, bool] = {}
    fused = left = 0
    for owner in list(model.modules()):
        for name, norm in list(owner.named_children()):
            made = _made(norm)
            if made is None:
                continue
            kind = type(norm), made.eps, made.weight.shape, made.weight.dtype
            if kind not in same:
                same[kind] = _is_same(norm, made)
            if same[kind]:
                setattr(owner, name, made.train(norm.training))
                fused += 1
            else:
                left += 1
    if not fused:
        return None
    others = f"; {left} others are as they are written" if left else ""
    return f"{fused} RMS norms are torch's fused ones{others}"


def _made(norm: nn.Module) -> FusedNorm | None:
    """The module for what may be a norm, by its name and its parts."""
    parts = dict(norm.named_parameters())
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not type(norm).__name__.endswith("RMSNorm") or [*parts] != ["weight"]:
        return None
    weight_D = parts["weight"]
    return FusedNorm(weight_D, eps) if isinstance(eps, float) and weight_D.dim() == 1 else None


def _is_same(norm: nn.Module, made: FusedNorm) -> bool:
    """Whether both give the same, forward and back, to a few roundings, with a weight that tells
    one kind from another. Where the kernel does not run they do not."""
    weight_D, seeded = made.weight, torch.Generator().manual_seed(0)
    like: dict[str, Any] = {"device": weight_D.device, "dtype": weight_D.dtype}
    probe_8D = torch.randn(8, len(weight_D), generator=seeded).to(**like).requires_grad_()
    arriving_8D = torch.randn(8, len(weight_D), generator=seeded).to(**like)
    other = {"weight": (torch.rand(len(weight_D), generator=seeded) + 0.5).to(**like)}
    results = []
    try:
        for module in (norm, made):
            with torch.enable_grad():
                output_8D = cast(Tensor, functional_call(module, other, (probe_8D,)))
                (gradient_8D,) = torch.autograd.grad(output_8D, probe_8D, arriving_8D)
            results.append((output_8D.detach(), gradient_8D))
    except (RuntimeError, TypeError, ValueError):
        return False
    # What transformers writes works in float32 at most.
    error = 4 * max(torch.finfo(one).eps for one in (weight_D.dtype, torch.float32))
    pairs = zip(*results, strict=True)
    return all(float((one - two).norm() / one.norm()) <= error for one, two in pairs)
