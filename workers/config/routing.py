"""How tokens are sent to experts: the strategies, in one table, and their options. No torch.

A new strategy is a class under `workers/layers/routing`, an entry in ROUTERS and, where it has an
option that no other has, a field of RoutingSpec.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Fraction, InputError, OneOf, PositiveInt, Size, Spec

GateForm = Literal["renormalised", "equal", "residual", "raw"]


@dataclass(frozen=True)
class Strategy:
    """What all but the layers need to know of a routing strategy."""

    summary: str
    """In a few words, for the description of `adapter.routing`."""
    implementation: str
    """The Router as "module:Class"; imported when a layer is built."""
    fields: tuple[str, ...] = ()
    """Fields of RoutingSpec that it reads, and not every other strategy does."""
    training_fields: tuple[str, ...] = ()
    """Those of them that mean nothing in inference."""
    slots: int | str | None = None
    """Experts that each token is sent to, at most where `void` is always: a number, or the field
    that holds it. None: any number of them."""
    void: Literal["never", "training", "always"] = "never"
    """When a slot may stay without an expert."""
    gates: GateForm = "renormalised"
    """The form of the gates where none is asked for."""
    joint: bool = False
    """In inference just the `slots` most probable experts: several adapters' routers can be one."""
    disk_names: tuple[str, ...] = ()
    """What MoE-PEFT calls it, then what m-LoRA called it; none: they do not know it, and our files
    have our name."""

    @property
    def inference_fields(self) -> tuple[str, ...]:
        """Fields that decide what a trained adapter computes."""
        return tuple(name for name in self.fields if name not in self.training_fields)


ROUTERS: dict[str, Strategy] = {
    "top_k": Strategy(
        summary="that many experts for each token",
        implementation="workers.layers.routing.top_k:TopK",
        fields=("top_k",),
        slots="top_k",
        joint=True,
        disk_names=("mixlora", "mixtral"),
    ),
    "top_p": Strategy(
        summary="the most probable experts until their probabilities exceed top_p",
        implementation="workers.layers.routing.top_p:TopP",
        fields=("top_p",),
        void="always",
        disk_names=("mixlora-dynamic",),
    ),
    "switch": Strategy(
        summary="one expert, with a capacity",
        implementation="workers.layers.routing.switch:Switch",
        fields=("expert_capacity",),
        training_fields=("expert_capacity",),
        slots=1,
        void="training",
        gates="residual",
        disk_names=("mixlora-switch", "switch"),
    ),
}

UNROUTED: Mapping[str, int] = MappingProxyType({"num_experts": 1, "top_k": 1})
"""Fields of plain LoRA: one expert, and no router."""


def disk_name(routing: str) -> str:
    """What a strategy is called in an adapter's files."""
    return next(iter(ROUTERS[routing].disk_names), routing)


def by_disk_name(name: str) -> str:
    """The strategy that an adapter's files call so."""
    return next(routing for routing in ROUTERS if disk_name(routing) == name)


def _described(schema: dict[str, Any]) -> None:
    """The strategies that there are, for editors and the generated documentation."""
    told = "; ".join(f"{name}: {strategy.summary}" for name, strategy in ROUTERS.items())
    schema["description"] += f" {told}."


class RoutingSpec(Spec):
    """How tokens are sent to experts."""

    experts: Literal["block", "linear"] = "block"
    """block: MixLoRA's feed-forward experts; linear: MoELoRA's, one router for each linear."""
    num_experts: Size | Annotated[tuple[Size, ...], Field(min_length=1)] = 8
    """Experts in each routed place; 1 is plain LoRA without a router. Several numbers, lowest
    layers first, are for as many equal groups of layers (MoLA, arXiv 2402.08562)."""
    routing: Annotated[str, OneOf(lambda: ROUTERS), Field(json_schema_extra=_described)] = "top_k"
    """How a token's experts are chosen."""
    top_k: PositiveInt = 2
    """Experts that each token is sent to, with routing: top_k."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Probability that a token's experts make up, with routing: top_p."""
    expert_capacity: PositiveInt = 32
    """Tokens of one sequence that one expert takes in training, with routing: switch; those above
    keep the frozen block. In inference there is no limit: an answer depends on its own row only."""
    gates: GateForm | None = None
    """Weights of the chosen experts. renormalised: their probabilities, which then sum to 1. equal:
    all the same, and they sum to 1 (ReMix, arXiv 2603.10160); the router learns as with
    renormalised. residual: their probabilities, and the frozen block has the rest. raw: their
    probabilities, and nothing has the rest (the reference implementation's dynamic and switch).
    None: renormalised; with switch residual."""
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

    @property
    def strategy(self) -> Strategy:
        """The table's entry."""
        return ROUTERS[self.routing]

    @property
    def gate_form(self) -> GateForm:
        """`gates` with its default filled in."""
        return self.gates or self.strategy.gates

    @property
    def is_routed(self) -> bool:
        """Whether any layer has several experts, and so a router."""
        return max(self.expert_counts) > 1

    def slots(self, experts: int) -> int:
        """How many of a router's experts each token is sent to at most."""
        slots = self.strategy.slots
        if slots is None:
            return experts
        return int(getattr(self, slots)) if isinstance(slots, str) else slots

    @property
    def fewest_slots(self) -> int:
        """How many experts each token is sent to at least."""
        return 1 if self.strategy.void == "always" else self.slots(1)

    @property
    def selects_nothing(self) -> bool:
        """Whether some router sends every token to all of its experts."""
        return self.fewest_slots in self.expert_counts and self.fewest_slots > 1

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
    def layer_experts(self) -> int:
        """Number of experts, of a layer's own specification (`in_layer`): it has one number."""
        (experts,) = self.expert_counts
        return experts

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """`num_experts` of each group of layers."""
        return self.num_experts if isinstance(self.num_experts, tuple) else (self.num_experts,)

    @model_validator(mode="after")
    def _check_routing(self) -> Self:
        name, slots, counts = self.strategy.slots, self.slots(1), self.expert_counts
        if isinstance(name, str) and slots > min(counts):
            raise ValueError(
                f"{name} is {slots}, but must be at most num_experts, which is {min(counts)}"
            )
        if few := [count for count in counts if 1 < count < slots]:
            raise ValueError(
                f"num_experts is {few[0]}, but must be 1 or at least {slots} with routing "
                f"{self.routing}, which sends every token to {slots} experts"
            )
        if self.gate_scale != 1 and self.gate_form != "raw":
            raise ValueError(f"gate_scale is {self.gate_scale}, but is for gates: raw only")
        return self
