"""Where a base lies, and in which precision it computes there."""

import torch

from workers.config.base import InputError, override
from workers.config.model import ModelSpec


def device_of(spec: ModelSpec) -> torch.device:
    """InputError for a GPU that this process does not see."""
    there = torch.cuda.is_available()
    if spec.device == "cuda" and not there:
        raise InputError(
            "model.device is cuda, but this process sees no GPU; allowed are auto, cpu"
        )
    if there and spec.device != "cpu":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def on_gpu(spec: ModelSpec) -> bool:
    """Whether its workers compute on a GPU, as far as this process can tell."""
    return spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available())


def settled(spec: ModelSpec) -> ModelSpec:
    """The same with a `dtype` that this process's device computes in place of auto. InputError
    where the attention that is asked for does not go with it."""
    if spec.dtype != "auto":
        return spec
    dtype = spec.settled_dtype or _best(device_of(spec))
    return override(spec, {"dtype": dtype}, "model")


def _best(device: torch.device) -> str:
    """A GPU that only emulates bfloat16 is quicker in float32."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if half else "float32"
