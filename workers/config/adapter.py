"""The shape of an adapter, as a specification."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Fraction, InputError, PositiveInt, Size, Spec


class AdapterSpec(Spec):
    """The shape of a routed mixture of LoRA experts."""

    experts: Literal["block", "linear"] = "block"
    """block: MixLoRA's feed-forward experts; linear: MoELoRA's, one router for each linear."""
    num_experts: Size | Annotated[tuple[Size, ...], Field(min_length=1)] = 8
    """Experts in each routed place; 1 is plain LoRA without a router. Several numbers, lowest
    layers first, are for as many equal groups of layers (MoLA, arXiv 2402.08562)."""
    routing: Literal["top_k", "top_p", "switch"] = "top_k"
    """top_k: that many experts for each token; top_p: the most probable experts until their
    probabilities exceed top_p; switch: one expert, with a capacity."""
    top_k: PositiveInt = 2
    """Experts that each token is sent to, with routing: top_k."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Probability that a token's experts make up, with routing: top_p."""
    expert_capacity: PositiveInt = 32
    """Tokens of one sequence that one expert takes in training, with routing: switch; those above
    keep the frozen block. In inference there is no limit: an answer depends on its own row only."""
    gates: Literal["renormalised", "residual", "raw"] | None = None
    """Weights of the chosen experts. renormalised: they sum to 1. residual: their probabilities,
    and the frozen block has the rest. raw: their probabilities, and nothing has the rest (the
    reference implementation's dynamic and switch). None: renormalised; with switch residual."""
    gate_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on raw gates: 1 / temperature of the reference implementation's dynamic strategy."""
    router_temperature: Annotated[float, Field(gt=0)] = 1.0
    """The router's logits are divided by it."""
    router_jitter: Fraction = 0.0
    """In training the router's input is multiplied by uniform noise from 1 -/+ this."""
    router_init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the router's initial weights."""
    expert_dropout: Fraction = 0.0
    """Share of the routed (token, expert) pairs that get the frozen block instead, in training."""
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

    @property
    def gate_form(self) -> Literal["renormalised", "residual", "raw"]:
        """`gates` with its default filled in."""
        return self.gates or ("residual" if self.routing == "switch" else "renormalised")

    @property
    def is_routed(self) -> bool:
        """Whether any layer has several experts, and so a router."""
        return max(self.expert_counts) > 1

    @property
    def selects_nothing(self) -> bool:
        """Whether some router sends every token to all of its experts."""
        return self.routing == "top_k" and self.top_k in self.expert_counts and self.top_k > 1

    def experts_in(self, layer: int, layers: int) -> int:
        """Number of experts in decoder layer `layer` of `layers`; InputError if there are fewer
        layers than numbers."""
        if len(self.expert_counts) > layers:
            raise InputError(
                f"num_experts has {len(self.expert_counts)} numbers, one for each group of layers, "
                f"but the model has {layers} layers"
            )
        return self.expert_counts[layer * len(self.expert_counts) // layers]

    def in_layer(self, layer: int, layers: int) -> Self:
        """The adapter's shape in one decoder layer: the one number of experts that it has there."""
        return self.model_copy(update={"num_experts": self.experts_in(layer, layers)})

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """`num_experts` of each group of layers."""
        return self.num_experts if isinstance(self.num_experts, tuple) else (self.num_experts,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        fewest = min(self.expert_counts)
        if self.routing == "top_k" and self.top_k > fewest:
            raise ValueError(
                f"top_k is {self.top_k}, but must be at most num_experts, which is {fewest}"
            )
        if self.gate_scale != 1 and self.gate_form != "raw":
            raise ValueError(f"gate_scale is {self.gate_scale}, but is for gates: raw only")
        if not self.target_modules:
            raise ValueError("target_modules is empty; name at least one linear, or all-linear")
        return self


def is_named(path: str, names: Iterable[str]) -> bool:
    """Whether any of these target modules' names is the end of a linear's path, or all of it."""
    return any(f".{path}".endswith(f".{name}") for name in names)
