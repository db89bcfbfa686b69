"""The experts that a mixture-of-experts base stacks: one weight for all of them, [E, O, I].

    y = sum_k g_k (down_e combine(up_e x)), e the expert of slot k

Found by the attributes that transformers gives such modules, and proved by running the module.
Shapes: T tokens, K slots, P pairs sorted by expert, E experts, D width, F inner width, I and O the
input and output size of one weight.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workers.layers.assignments import SortedAssignments
from workers.layers.ops.grouped_mm import Groups, grouped_mm

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Of weights that are numbers; packed ones are of other types."""
INNER = ("gate_up_proj", "up_proj")
OUTER = "down_proj"
STACKED = (*INNER, OUTER)
"""What transformers calls them, in the order in which modules have them."""


@dataclass(frozen=True)
class ExpertStack:
    """A base's stacked experts; it owns no weights."""

    module: nn.Module
    inner: str
    """Name of the weight that reads the input: gate and up together, or up alone."""
    experts: int
    is_transposed: bool
    """Whether a weight is [E, I, O], as gpt-oss has it."""

    @property
    def names(self) -> tuple[str, str]:
        """Of its weights, the inner one first."""
        return self.inner, OUTER

    def sizes(self, name: str) -> tuple[int, int]:
        """(in, out) of each expert's matrix."""
        _, first, second = _shape(self.module, name)
        return (first, second) if self.is_transposed else (second, first)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and of its products."""
        return self._weight(OUTER).dtype

    def product(self, name: str, rows_PI: Tensor, pairs: SortedAssignments) -> Tensor:
        """W_e x of every pair, with the expert's bias if there is one: [P, O]."""
        weight = self._weight(name)
        output_PO = _frozen_product(rows_PI, weight, pairs.groups, self.is_transposed)
        bias_EO = getattr(self.module, f"{name}_bias", None)
        if bias_EO is None:
            return output_PO
        place_P = torch.arange(len(rows_PI), device=rows_PI.device)
        expert_P = torch.searchsorted(pairs.end_N, place_P, right=True)
        biased_PO: Tensor = output_PO + bias_EO[expert_P]
        return biased_PO

    def combine(self, inner_PO: Tensor) -> Tensor:
        """The activation, of gated experts with their gate: [P, F]."""
        gated = self.inner == INNER[0]
        form = self.module._apply_gate if gated else self.module.act_fn
        output_PF: Tensor = form(inner_PO)  # type: ignore[operator]
        return output_PF

    def leave(self, output_PD: Tensor) -> Tensor:
        """What follows behind the outer weight: a norm, in some models."""
        if not getattr(self.module, "has_post_expert_norm", False):
            return output_PD
        normed_PD: Tensor = self.module.post_expert_norm(output_PD)  # type: ignore[operator]
        return normed_PD

    def _weight(self, name: str) -> Tensor:
        weight = getattr(self.module, name)
        assert isinstance(weight, Tensor)
        return weight


def _frozen_product(rows_PI: Tensor, weight: Tensor, groups: Groups, is_transposed: bool) -> Tensor:
    function: Any = _Frozen
    output_PO: Tensor = function.apply(rows_PI, weight, groups, is_transposed)
    return output_PO


class _Frozen(torch.autograd.Function):
    """A grouped product with weights that are not trained. Keeps the parameter itself, not a view:
    where it lies in shards, it is gathered again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, rows_PI: Tensor, weight: Tensor, groups: Groups, is_transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.groups, ctx.is_transposed = groups, is_transposed
        return grouped_mm(rows_PI, weight if is_transposed else weight.transpose(1, 2), groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PO: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        weight_EOI = weight.transpose(1, 2) if ctx.is_transposed else weight
        return grouped_mm(grad_PO.contiguous(), weight_EOI, ctx.groups), None, None, None


def find_stack(module: nn.Module) -> ExpertStack | None:
    """`module` as stacked experts, else None. Needs its structure only, no weights."""
    own = dict(module.named_parameters(recurse=False))
    inner = next((name for name in INNER if name in own), None)
    is_transposed = getattr(module, "is_transposed", None)
    if inner is None or OUTER not in own or not isinstance(is_transposed, bool):
        return None
    if not callable(getattr(module, "_apply_gate" if inner == INNER[0] else "act_fn", None)):
        return None
    weights = [own[name] for name in (inner, OUTER)]
    shapes = [_shape(module, name) for name in (inner, OUTER)]
    if any(len(shape) != 3 for shape in shapes) or any(one.dtype not in DTYPES for one in weights):
        return None
    stack = ExpertStack(module, inner, shapes[0][0], is_transposed)
    (width, _), (_, model) = stack.sizes(inner), stack.sizes(OUTER)
    same = width == model and shapes[0][0] == shapes[1][0]
    return stack if same and stack.experts > 1 else None


def _shape(module: nn.Module, name: str) -> tuple[int, ...]:
    """Of a weight; ZeRO-3 has none there while it is not used, and keeps its shape beside it."""
    weight = getattr(module, name)
    return tuple(getattr(weight, "ds_shape", weight.shape))
