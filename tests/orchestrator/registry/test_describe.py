"""What people read of events."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from orchestrator.registry.describe import evidence_line, outcome, percent
from orchestrator.registry.models import Event, Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import abort, promote, rollback
from orchestrator.registry.registry import Registry

Begin = Callable[..., Event]
FIGURES = {"requests": 40, "errors": {"engine_error": 8}, "error_rate": 0.2, "p95_seconds": 0.4}


def event(action: Any, **evidence: Any) -> Event:
    return Event(
        name="home",
        revision=2,
        action=action,
        version="b",
        previous="a",
        actor="moetune",
        reason="r",
        evidence=evidence,
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_promotions_tell_their_measures(begin: Begin) -> None:
    assert evidence_line(begin(0)) == "validation/loss 3"
    canary = begin(1, plan="5%,100% every 30m")
    assert evidence_line(canary) == "plan 5%, 100% every 30m; validation/loss 2, champion's 3"
    assert outcome(canary) == (
        f"home@{canary.version} is the canary of home: 5%, 100% every 30m of the users "
        "(a request's `user`, else its key: each stays on one side)"
    )


def test_what_was_overridden_and_what_a_shadow_lacks(
    registry: Registry, versions: list[Version], begin: Begin
) -> None:
    begin(1)
    worse: dict[str, Any] = {"actor": "ann", "metric": "validation/loss"}
    shadow = promote(registry, versions[0], "home", stage=stage(shadow=True), **worse)
    assert "the gate says: its validation/loss of 3 is not better" in evidence_line(shadow)
    assert shadow.evidence["forced"] is False
    forced = promote(registry, versions[0], "home", force=True, reason="pilot", **worse)
    assert "against the gate: its validation/loss of 3 is not better" in evidence_line(forced)


def test_the_guards_figures() -> None:
    seen = "40 requests, 8 engine_error, p95 0.4 s"
    assert evidence_line(event("abort", check="error_rate", **FIGURES)) == seen
    assert evidence_line(event("fallback", check="latency", **FIGURES)) == seen
    drift = event("abort", check="drift", why="1.40 of the limit", score=1.4)
    assert evidence_line(drift) == "1.40 of the limit"
    assert evidence_line(event("rollback")) == ""


def test_steps_and_comparisons() -> None:
    step = event("advance", step=1, share=0.25, seen={**FIGURES, "errors": {}})
    assert evidence_line(step) == "25% of the users; 40 requests, no errors, p95 0.4 s"
    compared = event(
        "compare",
        requests=100,
        failed=2,
        equal=0.5,
        agreement=0.75,
        tokens={"shadow": 20, "champion": 10},
        p95_seconds={"shadow": 0.2, "champion": 0.1},
    )
    assert evidence_line(compared) == (
        "100 answers, 50% equal to the champion's, 75% of the tokens; 2 failed; "
        "20 tokens long against 10; p95 0.2 s against 0.1 s"
    )


def test_outcomes(registry: Registry, versions: list[Version], begin: Begin) -> None:
    a, b, c = (version.id for version in versions)
    assert outcome(begin(0)) == f"home is now home@{a} (before: nothing)"
    assert outcome(begin(1)) == f"home is now home@{b} (before: {a})"
    assert outcome(begin(2, shadow=True)) == f"home@{c} is the shadow of home"
    ended = abort(registry, "home", actor="ann")
    assert outcome(ended) == f"home@{c} has ended; home stays home@{b}"
    back = rollback(registry, "home", actor="ann")
    assert outcome(back) == (
        f"home is back at home@{a} (was {b}); forward again: moetune promote home --version {b}"
    )
    from_base = event("rollback").model_copy(update={"previous": "base"})
    assert outcome(from_base) == "home is back at home@b (was base)"


def test_percentages() -> None:
    assert [percent(share) for share in (0.05, 0.025, 1.0, 1 / 3)] == [
        "5%",
        "2.5%",
        "100%",
        "33.33%",
    ]
