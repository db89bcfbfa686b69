"""Requests as gateways tell of them, and states to judge them by."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.registry.plan import Plan, parse_plan
from orchestrator.registry.state import Canary, Rollout
from orchestrator.telemetry.request_record import RequestRecord
from workers.engine.timing import ComputeSpan, SharedPasses, Timing

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def computed(
    times: float = 1.0, read: int = 3, drawn: int = 9, load: int = 1, others: str = ""
) -> Timing:
    """0.1 s for 3 tokens of a prompt and 9 further ones of an answer, or so many times as long."""
    prompt = ComputeSpan(read, read * times / 120, 1, read * load)
    answer = ComputeSpan(drawn, drawn * times / 120, drawn, drawn * load)
    return Timing((SharedPasses(frozenset(others), prompt, answer),))


def answered(version: str, **fields: Any) -> RequestRecord:
    """A whole answer that took 0.1 s, a second ago, under the name home."""
    values: dict[str, Any] = {
        "at": ago(1),
        "request": "cmpl-1",
        "name": "home",
        "caller": "anonymous",
        "status": 200,
        "error": None,
        "prompt_tokens": 3,
        "completion_tokens": 10,
        "seconds": 0.1,
        "first_token_seconds": 0.01,
        "timing": computed(),
    }
    values["came"] = fields.get("at", values["at"])
    return RequestRecord(version=version, **{**values, **fields})


def failed(version: str, error: str = "engine_error", **fields: Any) -> RequestRecord:
    return answered(version, **{"status": 500, "error": error, **fields})


def observed(observer: Any, *lots: tuple[int, RequestRecord]) -> None:
    """So many of each."""
    for count, one in lots:
        for _ in range(count):
            observer(one)


def rollout(champion: str = "a", before: Iterable[str] = (), **fields: Any) -> Rollout:
    """A name whose champion came ten minutes ago."""
    return Rollout("home", 1, (*before, champion), **{"since": ago(600), **fields})


def canary(plan: str | Plan = "10%", begun: float = 300, step_begun: float | None = None) -> Canary:
    """b, as the canary since `begun` seconds."""
    steps = parse_plan(plan) if isinstance(plan, str) else plan
    return Canary("b", steps, ago(begun), ago(begun if step_begun is None else step_begun))
