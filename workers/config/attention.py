"""The ways in which training may compute attention, as transformers calls them; free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Literal

from workers.config.base import InputError

Attention = Literal[
    "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
]


@dataclass(frozen=True)
class AttentionKind:
    """One of them."""

    supported: str | None = None
    """Where transformers' class of a family says that it takes it; None: every family does."""
    module: str | None = None
    """What must be importable."""
    package: str | None = None
    """What has that module, as pip knows it."""
    capability: tuple[int, int] | None = None
    """The least of an NVIDIA GPU that it runs on; None: it needs none."""
    half: bool = False
    """It computes in half precision alone."""
    packs: bool = True
    """Packed rows can do with it."""


ATTENTION: Mapping[str, AttentionKind] = MappingProxyType(
    {
        "sdpa": AttentionKind("_supports_sdpa"),
        "eager": AttentionKind(),
        "flash_attention_2": AttentionKind(
            "_supports_flash_attn", "flash_attn", "flash-attn", (8, 0), half=True
        ),
        "flash_attention_3": AttentionKind(
            "_supports_flash_attn", "flash_attn_interface", "flash-attn-3", (8, 0), half=True
        ),
        # On a CPU torch has no backward pass of it.
        "flex_attention": AttentionKind("_supports_flex_attn", capability=(7, 0), packs=False),
    }
)


def is_plain(name: str) -> bool:
    """Whether it runs everywhere; auto is something that does here."""
    return name not in ATTENTION or ATTENTION[name].capability is None


def is_flash(name: str) -> bool:
    """Whether it is a kernel for sequences of any length."""
    return name in ATTENTION and ATTENTION[name].half


def check_attention_here(name: str, *, has_gpu: bool) -> None:
    """InputError where its package or a GPU is missing."""
    if name == "auto":
        return
    kind = ATTENTION[name]
    if kind.capability and not has_gpu:
        raise InputError(f"model.attention is {name}, which needs a GPU; sdpa and eager do not")
    if kind.module and find_spec(kind.module) is None:
        raise InputError(
            f"model.attention is {name}, which needs the package {kind.package}: run pip install "
            f"{kind.package}, or leave it to auto"
        )
