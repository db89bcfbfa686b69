"""What is wrong with a version, from what was seen of it and of what it is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, lgamma, log, log1p
from typing import Any, Literal, Protocol

import numpy as np

from orchestrator.config.rollout import GuardSpec
from orchestrator.rollout.speed import KINDS, NOBODY, times_as_long
from orchestrator.rollout.window import Window
from workers.engine.timing import AdapterSet

SURE = 0.001
"""Chance of being wrong that is allowed: the guard asks every second, so it is not easily sure."""
HALF = 0.5
NON_FINITE = "non_finite"
"""Code of the error of an answer whose numbers were not finite."""


class DriftVerdict(Protocol):
    """What the routing's drift test says of a version's last requests."""

    @property
    def drifted(self) -> bool:
        """Whether the routing is not the training's any more."""
        ...

    @property
    def busiest(self) -> float:
        """The largest share that one user has of those requests."""
        ...

    def as_dict(self) -> Mapping[str, Any]:
        """Its figures, for the log."""
        ...


class Drift(Protocol):
    """The drift of a version's routing."""

    def __call__(self, version: str) -> DriftVerdict | None:
        """None where it cannot tell: too few requests, no router, no record of the training."""
        ...


@dataclass(frozen=True)
class Breach:
    """A limit that a version has broken."""

    check: Literal["error_rate", "latency", "non_finite", "drift"]
    reason: str
    """One line for people."""
    evidence: Mapping[str, Any]

    def as_evidence(self) -> dict[str, Any]:
        """For the event."""
        return {"check": self.check, **self.evidence}


def surely(count: int, n: int, rate: float) -> bool:
    """Whether `count` of `n` are more than `rate` explains: the exact binomial test, one-sided."""
    if count <= rate * n:
        return False
    return sum(exp(_log_chance(k, n, rate)) for k in range(count, n + 1)) < SURE


def not_finite(own: Window) -> Breach | None:
    """Even one answer with numbers that are not finite is a broken version."""
    found = own.errors[NON_FINITE]
    if not found:
        return None
    return Breach("non_finite", f"{found} of {own.requests} answers not finite", own.figures())


def failing(own: Window, others: Window, spec: GuardSpec) -> Breach | None:
    """More errors than allowed, and more than elsewhere: what fails everywhere is no version's
    fault, and no other version would mend it."""
    elsewhere = others.error_rate if others.requests >= spec.min_requests else 0.0
    limit = max(spec.max_error_rate, elsewhere)
    few = own.requests < spec.min_requests
    if few or not surely(own.errors.total(), own.requests, limit):
        return None
    return Breach(
        "error_rate",
        f"{own.error_rate:.1%} of {own.requests} requests failed (limit {limit:.1%})",
        {**own.figures(), "limit": round(limit, 4), "others": others.figures()},
    )


def slower(
    own: Window, standard: Window, spec: GuardSpec, away: AdapterSet = NOBODY
) -> Breach | None:
    """Slower than the standard at like work, at reading prompts or at writing answers, where none
    of the versions `away` took part."""
    breaches = (_slower(kind, own, standard, spec, away) for kind in KINDS)
    return next((breach for breach in breaches if breach), None)


def drifting(verdict: DriftVerdict | None) -> Breach | None:
    """Routing that is not the training's any more."""
    if verdict is None or not verdict.drifted:
        return None
    return Breach("drift", "its routing has drifted from the training's", dict(verdict.as_dict()))


def _slower(
    kind: str, own: Window, standard: Window, spec: GuardSpec, away: AdapterSet
) -> Breach | None:
    """By more than the allowed ratio in surely more than half of the requests (the sign test)."""
    limit = spec.latency_ratio
    ratio_N = times_as_long(kind, own.seen, standard.seen, away)
    compared, slow = len(ratio_N), int((ratio_N > limit).sum())
    if compared < spec.min_requests or not surely(slow, compared, HALF):
        return None
    ratio = float(np.median(ratio_N))
    return Breach(
        "latency",
        f"{kind}: {ratio:.3g} times the seconds of like work (limit {limit:g})",
        {
            **own.figures(),
            "kind": kind,
            "ratio": round(ratio, 4),
            "limit": limit,
            "compared": compared,
            "standard": standard.figures(),
        },
    )


def _log_chance(k: int, n: int, rate: float) -> float:
    """Of k among n; in logarithms, since the numbers of ways have no end."""
    ways = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
    return ways + k * log(rate) + (n - k) * log1p(-rate)
