"""How a model computes attention in training: as it is asked to, or by what is there."""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from workers.config.attention import ATTENTION, check_attention_here, is_flash
from workers.config.base import InputError
from workers.config.model import ModelSpec

HOPPER = (9, 0)
"""The GPUs that FlashAttention 3 was made for."""


class AttentionChoice(NamedTuple):
    """What a base was loaded with."""

    name: str
    """As transformers calls it."""
    reason: str

    @property
    def words(self) -> str:
        """Half a sentence."""
        return f"{self.name}: {self.reason}"


def attention_choice(
    spec: ModelSpec, config: PretrainedConfig, device: torch.device
) -> AttentionChoice:
    """For a base on this device. InputError where it cannot be what `model.attention` names;
    whether the family takes that, `check_family` says."""
    if spec.attention != "auto":
        check_attention_here(spec.attention, has_gpu=device.type == "cuda")
        _check_capability(spec.attention, device)
        return AttentionChoice(spec.attention, "model.attention asks for it")
    if device.type == "cuda" and spec.dtype == "bfloat16" and not spec.compile:
        flash = _flash(config, torch.cuda.get_device_capability(device))
        if flash:
            return AttentionChoice(flash, f"{ATTENTION[flash].package} is installed, and runs here")
    if not _takes("sdpa", config):
        return AttentionChoice("eager", f"{_class(config).__name__} does not support sdpa")
    return AttentionChoice("sdpa", "torch's own, which takes the quickest kernel that is there")


def check_family(spec: ModelSpec, config: PretrainedConfig) -> None:
    """InputError where models of this configuration do not take the attention that is asked for."""
    if spec.attention == "auto" or _takes(spec.attention, config):
        return
    allowed = ["auto", *(name for name in ATTENTION if _takes(name, config))]
    raise InputError(
        f"model.attention is {spec.attention}, but {_class(config).__name__} does not support it; "
        f"allowed are {', '.join(allowed)}"
    )


def _flash(config: PretrainedConfig, capability: tuple[int, int]) -> str | None:
    """The newest FlashAttention that is installed and that family and GPU take."""
    fits = {"flash_attention_3": capability[0] == HOPPER[0], "flash_attention_2": True}
    for name, good in fits.items():
        kind = ATTENTION[name]
        assert kind.module, "a package of its own"
        assert kind.capability, "for GPUs alone"
        there = capability >= kind.capability and find_spec(kind.module)
        if good and there and _takes(name, config):
            return name
    return None


def _takes(name: str, config: PretrainedConfig) -> bool:
    """Whether the family's class says so; one with sinks names the kernels that have them."""
    family, flag = _class(config), ATTENTION[name].supported
    kernels = getattr(family, "_compatible_flash_implementations", None)
    if is_flash(name) and kernels and name not in kernels:
        return False
    return flag is None or bool(getattr(family, flag))


def _check_capability(name: str, device: torch.device) -> None:
    least = ATTENTION[name].capability
    if least and torch.cuda.get_device_capability(device) < least:
        raise InputError(
            f"model.attention is {name}, which needs a GPU of compute capability {least[0]}."
            f"{least[1]}; sdpa and eager do not"
        )


def _class(config: PretrainedConfig) -> type:
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    family: type = found[0] if isinstance(found, tuple) else found
    return family
