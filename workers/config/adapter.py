"""The shape of an adapter, as a specification."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Fraction, Size
from workers.config.routing import RoutingSpec


class AdapterSpec(RoutingSpec):
    """The shape of a routed mixture of LoRA experts."""

    rank: Size = 8
    """Rank of every expert, and of the attention's plain LoRA."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with use_rslora)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (arXiv 2312.03732)."""
    use_dora: bool = False
    """Also train the magnitude of every expert's output features (DoRA, arXiv 2402.09353)."""
    shared_a: bool = False
    """All experts of a place share one A matrix (HydraLoRA, arXiv 2404.19245)."""
    dropout: Fraction = 0.05
    """Dropout on the input of every A matrix, in training only."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linears to adapt, or ends of their paths, such as mlp.up_proj; all-linear takes
    every one inside the decoder's layers."""

    @property
    def scale(self) -> float:
        """The factor s of the low-rank update."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.target_modules:
            raise ValueError("target_modules is empty; name at least one linear, or all-linear")
        return self


def is_named(path: str, names: Iterable[str]) -> bool:
    """Whether any of these target modules' names is the end of a linear's path, or all of it."""
    return any(f".{path}".endswith(f".{name}") for name in names)
