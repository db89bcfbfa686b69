"""How a version comes to its traffic: at once, to a share of the users, or step by step."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import InputError, Spec, validated

_SHARE = re.compile(r"(?P<percent>\d{1,3}(\.\d{1,3})?) ?%")
_PLAN = re.compile(r"(?P<steps>.+?)(\s+every\s+(?P<count>\d{1,6})\s*(?P<unit>[smhd]))?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Share = Annotated[float, Field(gt=0, le=1)]


class Plan(Spec):
    """A canary's way: shares of the users, and how long each of them lasts."""

    steps: Annotated[tuple[Share, ...], Field(min_length=1)]
    """Growing. The last may be 1: the promotion."""
    every_seconds: Annotated[int, Field(gt=0)] | None = None
    """None: there is one step, and nothing goes on by itself."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if any(a >= b for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("each step has a larger share than the one before")
        if self.steps[0] == 1:
            raise ValueError("a first step of 100% is a promotion: leave it out")
        if (self.every_seconds is None) != (len(self.steps) == 1):
            raise ValueError('several steps want their time, as in "5%,25%,100% every 30m"')
        return self

    @property
    def every(self) -> timedelta | None:
        """How long a step lasts."""
        return None if self.every_seconds is None else timedelta(seconds=self.every_seconds)

    def __str__(self) -> str:
        steps = ", ".join(f"{share:.4g}%" for share in (100 * s for s in self.steps))
        if self.every_seconds is None:
            return steps
        unit = next(u for u in "dhms" if self.every_seconds % _SECONDS[u] == 0)
        return f"{steps} every {self.every_seconds // _SECONDS[unit]}{unit}"


class Stage(Spec):
    """What a version that passes the gate becomes."""

    action: Literal["promote", "canary", "shadow"] = "promote"
    plan: Plan | None = None
    """Of a canary."""

    def evidence(self) -> dict[str, Any]:
        """What the log needs so that the canary can be told from it."""
        if self.plan is None:
            return {}
        return {"plan": self.plan.model_dump(mode="json"), "step": 0, "share": self.plan.steps[0]}


def stage(canary: str | None = None, plan: str | None = None, shadow: bool = False) -> Stage:
    """From what people write: `10%`, or `5%,25%,100% every 30m`; at most one of the three."""
    if sum((canary is not None, plan is not None, shadow)) > 1:
        raise InputError("take one of --canary, --plan and --shadow")
    if shadow:
        return Stage(action="shadow")
    if canary is not None:
        return Stage(action="canary", plan=_valid((share(canary),), None, canary))
    if plan is not None:
        return Stage(action="canary", plan=parse_plan(plan))
    return Stage()


def share(text: str) -> float:
    """`10%` as 0.1."""
    found = _SHARE.fullmatch(text.strip())
    if not found or not 0 < float(found["percent"]) <= 100:
        raise InputError(f"share {text!r}: write a percentage above 0 and up to 100, such as 10%")
    return float(found["percent"]) / 100


def parse_plan(text: str) -> Plan:
    """`5%,25%,100% every 30m`; the times' units are s, m, h and d."""
    found = _PLAN.fullmatch(text.strip())
    if not found:
        raise InputError(f'plan {text!r}: write it as in "5%,25%,100% every 30m"')
    seconds = int(found["count"]) * _SECONDS[found["unit"]] if found["count"] else None
    return _valid(tuple(share(step) for step in found["steps"].split(",")), seconds, text)


def plan_of(evidence: Mapping[str, Any]) -> Plan:
    """The plan in an event's evidence."""
    return Plan.model_validate(evidence["plan"])


def _valid(steps: tuple[float, ...], seconds: int | None, text: str) -> Plan:
    return validated(Plan, {"steps": steps, "every_seconds": seconds}, f"plan {text!r}")
