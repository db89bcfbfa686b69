"""Routing strategies: MixLoRA's keys from and to the fields of RoutingSpec. No torch.

Keys and their defaults are MoE-PEFT 2.0.2's, whose three strategies compute:
mixlora: the top_k most probable experts, their probabilities divided by their sum.
mixlora-dynamic: probabilities divided by `temperature` where it is set, after the softmax; the
largest of them until their sum exceeds `top_p`, and so multiplied, whatever their sum is.
mixlora-switch: the most probable expert times its probability. The reference does so in training
only; its inference mode forgets the block (it returns the block's input), which nobody can mean.
A strategy that it does not have stands under our name, with the keys that fit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from workers.config.base import Fraction, NonNegative, OneOf, PositiveInt, Size, Spec
from workers.config.routing import ROUTERS, GateForm, RoutingSpec, by_disk_name, disk_name


@dataclass(frozen=True)
class _Meaning:
    """What the reference computes by a strategy's name, where it differs from our defaults."""

    gates: GateForm | None = None
    divided: str | None = None
    """The field that its temperature divides."""
    jitter: float = 0.0
    """Its jitter_noise where that is not set."""
    init_std: float = 0.02
    """Its router_init_range where that is not set."""


_MEANINGS = {
    "mixlora-dynamic": _Meaning(gates="raw", divided="top_p"),
    "mixlora-switch": _Meaning(gates="raw", jitter=0.01, init_std=1.0),
}


class RoutingKeys(Spec):
    """How an adapter routes, in the keys of its configuration."""

    routing_strategy: Annotated[str, OneOf(lambda: map(disk_name, ROUTERS))] | None = None
    num_experts: Size = 1
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    temperature: NonNegative = 0.0
    expert_capacity: PositiveInt = 32
    jitter_noise: Fraction | None = None
    router_init_range: NonNegative | None = None

    @property
    def routing(self) -> str:
        """The strategy by our name."""
        return by_disk_name(self.routing_strategy or "mixlora")

    def routing_fields(self) -> dict[str, Any]:
        """The fields of a RoutingSpec that these keys stand for."""
        meaning = _meaning(self.routing)
        jitter, init_std = self.jitter_noise, self.router_init_range
        fields: dict[str, Any] = {
            "num_experts": self.num_experts,
            "routing": self.routing,
            "router_jitter": meaning.jitter if jitter is None else jitter,
            "router_init_std": init_std or meaning.init_std,
            **dict(self._own_fields()),
        }
        if meaning.gates:
            fields["gates"] = meaning.gates
        if meaning.divided:
            divisor = self.temperature or 1.0
            fields[meaning.divided] = min(1.0, fields[meaning.divided] * divisor)
            fields["gate_scale"] = 1 / divisor
        return fields

    def _own_fields(self) -> Iterator[tuple[str, Any]]:
        """Those that the strategy reads. How many experts a token has, MoE-PEFT has no default
        for; ours, or all that there are."""
        strategy = ROUTERS[self.routing]
        for name in _keys(strategy.fields):
            value = getattr(self, name)
            if value is None and name == strategy.slots:
                value = min(RoutingSpec.model_fields[name].default, self.num_experts)
            yield name, value


def most_experts(spec: RoutingSpec) -> int:
    """Number of experts where there are most."""
    return max(spec.expert_counts)


def routing_keys(spec: RoutingSpec) -> dict[str, Any]:
    """The keys that stand for a routed spec, as closely as they can."""
    meaning = _meaning(spec.routing)
    keys: dict[str, Any] = {
        "routing_strategy": disk_name(spec.routing),
        "num_experts": most_experts(spec),
        **{name: getattr(spec, name) for name in _keys(spec.strategy.fields)},
    }
    if meaning.divided:
        keys[meaning.divided] = min(1.0, keys[meaning.divided] * spec.gate_scale)
        keys["temperature"] = 0.0 if spec.gate_scale == 1 else 1 / spec.gate_scale
    if spec.router_jitter != meaning.jitter:
        keys["jitter_noise"] = spec.router_jitter
    if spec.router_init_std != meaning.init_std:
        keys["router_init_range"] = spec.router_init_std
    return keys


def modern_name(name: str) -> str | None:
    """Today's name for what m-LoRA called a strategy; None for any other name."""
    old = (one.disk_names for one in ROUTERS.values() if one.disk_names)
    return next((today for today, *before in old if name in before), None)


def _meaning(routing: str) -> _Meaning:
    return _MEANINGS.get(disk_name(routing), _Meaning())


def _keys(fields: tuple[str, ...]) -> list[str]:
    """Those of a strategy's fields that there is a key for; others stand under `moetune`."""
    return [name for name in fields if name in RoutingKeys.model_fields]
