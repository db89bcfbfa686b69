"""Which of the common activations a module or function of torch or transformers is."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

_GELU = {"none": "gelu", "tanh": "gelu_tanh"}
_MODULES = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "ReLU": "relu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
}
_FUNCTIONS: dict[Callable[..., Tensor], str] = {
    functional.silu: "silu",
    functional.relu: "relu",
    functional.gelu: "gelu",
    torch.relu: "relu",
}


def activation_name(act: Callable[[Tensor], Tensor]) -> str | None:
    """silu, gelu (by erf), gelu_tanh or relu; None for every other activation."""
    if isinstance(act, nn.GELU):
        return _GELU.get(act.approximate)
    if isinstance(act, nn.Module):
        kind = type(act)
        known = kind.__module__.startswith(("torch.nn.", "transformers.activations"))
        return _MODULES.get(kind.__name__) if known else None
    if isinstance(act, partial) and act.func is functional.gelu and not act.args:
        return _GELU.get(act.keywords.get("approximate", "none"))
    return _FUNCTIONS.get(act)
