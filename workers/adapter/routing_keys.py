"""Routing strategies: MixLoRA's keys from and to the fields of AdapterSpec. No torch.

Keys and their defaults are MoE-PEFT 2.0.2's, whose three strategies compute:
mixlora: the top_k most probable experts, their probabilities divided by their sum.
mixlora-dynamic: probabilities divided by `temperature` where it is set, after the softmax; the
largest of them until their sum exceeds `top_p`, and so multiplied, whatever their sum is.
mixlora-switch: the most probable expert times its probability. The reference does so in training
only; its inference mode forgets the block (it returns the block's input), which nobody can mean.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from workers.config.adapter import AdapterSpec
from workers.config.base import Fraction, NonNegative, PositiveInt, Size, Spec

Routing = Literal["top_k", "top_p", "switch"]
Strategy = Literal["mixlora", "mixlora-dynamic", "mixlora-switch"]
STRATEGIES: dict[Routing, Strategy] = {
    "top_k": "mixlora",
    "top_p": "mixlora-dynamic",
    "switch": "mixlora-switch",
}


class RoutingKeys(Spec):
    """How an adapter routes, in the keys of its configuration."""

    routing_strategy: Strategy | None = None
    num_experts: Size = 1
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    temperature: NonNegative = 0.0
    expert_capacity: PositiveInt = 32
    jitter_noise: Fraction | None = None
    router_init_range: NonNegative | None = None

    @property
    def routing(self) -> Routing:
        """The strategy by our name."""
        strategy = self.routing_strategy or "mixlora"
        return next(ours for ours, theirs in STRATEGIES.items() if theirs == strategy)

    @property
    def fewest_slots(self) -> int:
        """How many experts a token has at least."""
        return self.top_k or min(2, self.num_experts) if self.routing == "top_k" else 1

    def routing_fields(self) -> dict[str, Any]:
        """The fields of an AdapterSpec that these keys stand for."""
        jitter, init_std = _defaults(self.routing)
        fields: dict[str, Any] = {
            "num_experts": self.num_experts,
            "routing": self.routing,
            "router_jitter": jitter if self.jitter_noise is None else self.jitter_noise,
            "router_init_std": self.router_init_range or init_std,
        }
        if self.routing == "top_k":
            return fields | {"top_k": self.fewest_slots}
        if self.routing == "switch":
            return fields | {"gates": "raw", "expert_capacity": self.expert_capacity}
        divisor = self.temperature or 1.0
        top_p = min(1.0, self.top_p * divisor)
        return fields | {"gates": "raw", "top_p": top_p, "gate_scale": 1 / divisor}


def most_experts(spec: AdapterSpec) -> int:
    """Number of experts where there are most."""
    counts = spec.num_experts
    return max(counts) if isinstance(counts, tuple) else counts


def routing_keys(spec: AdapterSpec) -> dict[str, Any]:
    """The keys that stand for a routed spec, as closely as they can."""
    keys: dict[str, Any] = {
        "routing_strategy": STRATEGIES[spec.routing],
        "num_experts": most_experts(spec),
    }
    if spec.routing == "top_k":
        keys["top_k"] = spec.top_k
    elif spec.routing == "top_p":
        keys["top_p"] = min(1.0, spec.top_p * spec.gate_scale)
        keys["temperature"] = 0.0 if spec.gate_scale == 1 else 1 / spec.gate_scale
    else:
        keys["expert_capacity"] = spec.expert_capacity
    given = {"jitter_noise": spec.router_jitter, "router_init_range": spec.router_init_std}
    defaults = zip(given.items(), _defaults(spec.routing), strict=True)
    return keys | {key: value for (key, value), default in defaults if value != default}


def _defaults(routing: Routing) -> tuple[float, float]:
    """The reference's jitter_noise and router_init_range where they are not set."""
    return (0.01, 1.0) if routing == "switch" else (0.0, 0.02)
