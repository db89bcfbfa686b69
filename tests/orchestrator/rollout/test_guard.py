"""When the guard acts, and when it must not."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.config.rollout import GuardSpec
from orchestrator.registry.log import Decision
from orchestrator.registry.state import Rollout
from orchestrator.rollout.guard import Guard
from orchestrator.rollout.window import Windows
from tests.orchestrator.rollout.traffic import (
    NOW,
    ago,
    answered,
    canary,
    computed,
    failed,
    observed,
    rollout,
)
from workers.engine.timing import SharedPasses, Timing

CANARY = rollout(canary=canary())
GOOD = (200, answered("a"))


@dataclass(frozen=True)
class Says:
    drifted: bool
    busiest: float = 0.1

    def as_dict(self) -> Mapping[str, Any]:
        return {"why": "as the test wants it"}


def judged(state: Rollout, *lots: Any, says: Any = None, **spec: Any) -> Decision | None:
    limits = GuardSpec(**spec)
    windows = Windows(limits)
    observed(windows, *lots)
    verdicts = {version: Says(drifted) for version, drifted in (says or {}).items()}
    return Guard(limits, windows, verdicts.get if says else None)(state, NOW)


def acts(state: Rollout, *lots: Any, **more: Any) -> tuple[str, str, str]:
    decision = judged(state, *lots, **more)
    assert decision is not None
    return decision.action, decision.version, decision.evidence["check"]


def test_a_good_canary_goes_on() -> None:
    assert judged(CANARY, GOOD, (50, answered("b"))) is None


@pytest.mark.parametrize("bad", [6, 20])
def test_a_failing_canary_ends_with_its_figures(bad: int) -> None:
    decision = judged(CANARY, GOOD, (20 - bad, answered("b")), (bad, failed("b")))
    assert decision is not None
    assert (decision.action, decision.version) == ("abort", "b")
    assert decision.reason == f"{bad / 20:.1%} of 20 requests failed (limit 5.0%)"
    assert decision.evidence["check"] == "error_rate"
    assert decision.evidence["errors"] == {"engine_error": bad}
    assert decision.evidence["others"]["requests"] == 200


def test_too_few_requests_say_nothing() -> None:
    assert judged(CANARY, GOOD, (19, failed("b"))) is None
    assert judged(CANARY, GOOD, (5, failed("b")), (5, answered("b")), min_requests=10)
    assert judged(CANARY, GOOD, (19, answered("b", timing=computed(600)))) is None


def test_one_error_among_a_few_is_chance() -> None:
    assert judged(CANARY, GOOD, (2, failed("b")), (18, answered("b"))) is None


def test_no_error_of_a_client_ends_a_canary() -> None:
    lots = ((200, answered("b", status=status, error="x")) for status in (400, 404, 429, 499))
    assert judged(CANARY, GOOD, *lots) is None


@pytest.mark.parametrize("error", ["invalid_schema", "timeout", "client_closed_request"])
def test_no_trouble_of_a_request_ends_anything(error: str) -> None:
    own = failed("b", error, timing=None)
    assert judged(CANARY, GOOD, (200, own)) is None
    assert judged(rollout("b", ["a"]), (200, own)) is None


def test_no_pin_ends_anything_nor_hides_what_fails() -> None:
    pins = (200, failed("b", role="pinned"))
    slow = (200, answered("b", role="pinned", timing=computed(9)))
    assert judged(CANARY, GOOD, pins, slow) is None
    assert judged(rollout("b", ["a"]), GOOD, pins, slow) is None
    own = (20, failed("b", role="canary"))
    elsewhere = (200, failed("c", name="garden", role="pinned"))
    assert acts(CANARY, own, elsewhere)[0] == "abort"
    assert acts(CANARY, own, (400, answered("b", role="pinned")))[0] == "abort"


def test_one_answer_that_is_not_finite_is_enough() -> None:
    assert acts(CANARY, (1, failed("b", "non_finite"))) == ("abort", "b", "non_finite")
    assert acts(rollout("b", ["a"]), (1, failed("b", "non_finite"))) == (
        "fallback",
        "a",
        "non_finite",
    )
    shadowed = rollout(shadow="b")
    assert acts(shadowed, (1, failed("b", "non_finite", role="shadow"))) == (
        "abort",
        "b",
        "non_finite",
    )


def test_a_slow_canary_ends() -> None:
    slow = (20, answered("b", timing=computed(2.1)))
    assert acts(CANARY, GOOD, slow) == ("abort", "b", "latency")
    assert judged(CANARY, GOOD, slow, latency_ratio=2.5) is None
    assert judged(CANARY, (8, answered("a")), slow) is None, "no standard to go by"
    assert (
        judged(CANARY, GOOD, (60, answered("b")), (40, answered("b", timing=computed(9)))) is None
    )


def test_a_canary_that_is_slow_at_answers_alone_ends() -> None:
    slow = SharedPasses(frozenset(), computed().prompt, computed(3).answer)
    decision = judged(CANARY, GOOD, (20, answered("b", timing=Timing((slow,)))))
    assert decision is not None
    assert decision.reason == "further tokens: 3 times the seconds of like work (limit 2)"
    told = {key: decision.evidence[key] for key in ("kind", "ratio", "limit", "compared")}
    assert told == {"kind": "further tokens", "ratio": 3.0, "limit": 2.0, "compared": 20}


def test_a_canary_so_slow_that_no_answer_ends_is_told_by_what_was_computed() -> None:
    cut = failed("b", "timeout", status=504, timing=computed(50))
    assert acts(CANARY, GOOD, (20, cut)) == ("abort", "b", "latency")


def test_who_waits_for_a_slow_canary_is_no_measure_of_it() -> None:
    """In passes that both are in, both are as slow."""
    slow, alone = computed(3, others="a"), (9, answered("a"))
    beside = (400, answered("a", timing=computed(3, others="b")))
    canary = (20, answered("b", timing=slow))
    assert acts(CANARY, beside, alone, canary) == ("abort", "b", "latency")
    assert judged(CANARY, beside, canary) is None, "there is no pass without it"


@pytest.mark.parametrize(
    "other",
    [
        {"timing": computed(2.1, read=48), "prompt_tokens": 48},
        {"timing": computed(2.1, load=32)},
        {"timing": computed(2.1), "prompt_tokens": 900},
        {"timing": computed(2.1, others="x")},
        {"seconds": 60.0, "first_token_seconds": 30.0},
        {"timing": None, "seconds": 60.0},
    ],
    ids=[
        "longer prompts",
        "more company",
        "behind a long prefix",
        "beside others",
        "slow readers",
        "untold",
    ],
)
def test_other_work_is_no_slowness(other: dict[str, Any]) -> None:
    assert judged(CANARY, GOOD, (200, answered("b", **other))) is None


def test_what_fails_everywhere_is_nobodys_fault() -> None:
    sick = rollout("b", ["a"])
    failing = (50, failed("b"))
    assert judged(sick, failing, (50, failed("base", name=None))) is None
    assert acts(sick, failing, (50, answered("base", name=None))) == ("fallback", "a", "error_rate")
    assert acts(sick, failing, (5, failed("base", name=None))) == ("fallback", "a", "error_rate")


def test_requests_from_before_its_time_are_not_held_against_it() -> None:
    """The same version may have been a canary before, on a broken machine."""
    assert judged(CANARY, GOOD, (50, failed("b", at=ago(301)))) is None
    assert judged(rollout("b", ["a"]), (50, failed("b", at=ago(601)))) is None


@pytest.mark.parametrize(
    ("line", "fallbacks", "policy", "to"),
    [
        ("a b", 0, ("previous", "base"), "a"),
        ("a", 1, ("previous", "base"), "base"),
        ("a b", 1, ("previous", "base"), "base"),
        ("a", 0, ("previous", "base"), "base"),
        ("a b", 0, ("base",), "base"),
        ("a b", 0, ("previous",), "a"),
        ("a", 0, ("previous",), None),
        ("a b", 1, ("previous",), None),
        ("a b", 2, ("previous", "base"), None),
        ("a b", 0, (), None),
    ],
)
def test_a_failing_champion_falls_back_as_the_policy_says(
    line: str, fallbacks: int, policy: Any, to: str | None
) -> None:
    *before, champion = line.split()
    state = rollout(champion, before, fallbacks=fallbacks)
    decision = judged(state, (50, failed(champion)), fallback=policy)
    assert (decision and decision.version) == to
    if decision:
        assert decision.action == "fallback"
        assert decision.evidence["failed"] == champion


def test_the_base_has_nothing_to_fall_back_to() -> None:
    state = rollout("base", ["a"])
    assert judged(state, (50, failed("base"))) is None


def test_a_new_champion_is_compared_with_the_one_it_has_replaced() -> None:
    new = rollout("b", ["a"], predecessor="a")
    before = (100, answered("a", at=ago(650)))
    slow = (100, answered("b", timing=computed(3)))
    assert acts(new, before, slow) == ("fallback", "a", "latency")
    assert judged(new, before, slow, probation_seconds=500) is None, "by now it may be the load"
    assert judged(new, slow) is None
    assert judged(rollout("b", ["a"]), before, slow) is None, "nobody was replaced"
    elsewhere = [(50, answered("base", name=None, at=ago(650)))]
    assert judged(new, before, slow, *elsewhere, (50, answered("base", name=None)))
    as_slow = (50, answered("base", name=None, timing=computed(3)))
    assert judged(new, before, slow, *elsewhere, as_slow) is None, "the machine is slower"
    waits = (50, answered("base", name=None, timing=computed(3, others="b")))
    assert judged(new, before, slow, *elsewhere, waits), "they are slow by waiting for it"


def test_drift_ends_a_canary_unless_the_champion_drifts_too() -> None:
    assert acts(CANARY, says={"a": False, "b": True}) == ("abort", "b", "drift")
    assert judged(CANARY, says={"a": True, "b": True}) is None
    assert judged(CANARY, says={"b": True}) is None, "who knows what the requests are like"
    assert judged(CANARY, says={"a": False, "b": False}) is None
    assert judged(CANARY, says={"a": False}) is None
    assert judged(CANARY, says={"a": False, "b": True}, drift="off") is None


def test_one_users_habits_are_no_drift_of_the_canary() -> None:
    limits = GuardSpec()
    verdicts = {"a": Says(drifted=False), "b": Says(drifted=True, busiest=0.3)}
    assert Guard(limits, Windows(limits), verdicts.get)(CANARY, NOW) is None


def test_a_champions_drift_counts_where_that_is_wanted() -> None:
    state, says = rollout("b", ["a"]), {"b": True}
    assert judged(state, says=says) is None
    assert acts(state, says=says, drift="all") == ("fallback", "a", "drift")


def test_a_guard_that_is_off_does_nothing() -> None:
    assert judged(CANARY, (1, failed("b", "non_finite")), (50, failed("a")), on=False) is None


def test_good_canaries_are_hardly_ever_ended_by_chance() -> None:
    """Both fail in 2 % of requests, and take about as long; the guard asks all the time."""
    draw = random.Random(1)
    ended = 0
    for _ in range(20):
        spec = GuardSpec()
        windows = Windows(spec)
        guard = Guard(spec, windows)
        for _ in range(30):
            for version in "aaab" * 10:
                one = failed(version) if draw.random() < 0.02 else answered(version)
                pace = computed(draw.lognormvariate(0, 0.5))
                windows(answered(version, timing=pace) if one.status == 200 else one)
            if guard(CANARY, NOW):
                ended += 1
                break
    assert ended <= 1
