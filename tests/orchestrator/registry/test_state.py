"""What logs come to."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.registry.models import Event
from orchestrator.registry.state import Rollout, Unreadable, state_of

Log = Callable[..., list[Event]]


def now(log: list[Event]) -> Rollout:
    state = state_of(log)
    assert state is not None
    assert state.revision == len(log)
    return state


def test_an_empty_log_is_no_name() -> None:
    assert state_of([]) is None


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["promote a"], "a"),
        (["promote a", "promote b", "promote c"], "a b c"),
        (["promote a", "promote b", "promote c", "rollback b"], "a b"),
        (["promote a", "promote b", "rollback a", "promote c", "rollback a"], "a"),
        (["promote a", "promote b", "promote a"], "a b a"),
        (["promote a", "promote b", "fallback a"], "a"),
        (["promote a", "promote b", "fallback base"], "a base"),
        (["promote a", "fallback base"], "base"),
        (["promote a", "promote b", "fallback a", "fallback base"], "base"),
        (["promote a", "fallback base", "promote b", "rollback base"], "base"),
        (["promote a", "promote b", "fallback base", "rollback a"], "a"),
        (["promote a", "canary b 5%", "shadow c", "abort b", "abort c"], "a"),
        (["promote a", "promote b", "promote c", "drop a"], "b c"),
        (["promote a", "promote b", "promote a", "promote c", "drop b"], "a c"),
        (["promote a", "promote b", "promote c", "drop a", "rollback b"], "b"),
        (["promote a", "delete a", "promote b"], "b"),
        (["promote a", "promote b", "delete b", "promote a", "promote c"], "a c"),
    ],
)
def test_the_line_of_champions(lines: list[str], line: str, log: Log) -> None:
    state = now(log(*lines))
    *earlier, champion = line.split()
    assert state.line == (*earlier, champion)
    assert state.champion == champion
    assert state.previous == (earlier[-1] if earlier else None)


def test_a_deleted_name_has_no_state(log: Log) -> None:
    events = log("promote a", "promote b", "delete b")
    assert state_of(events) is None
    assert state_of(events[2:]) is None
    assert state_of(events[2:], state_of(events[:2])) is None


def test_deleted_versions_are_known_until_they_come_again(log: Log) -> None:
    lines = ["promote a", "promote b", "canary c 5%", "abort c", "promote d", "drop a", "drop c"]
    lines += ["canary c 5%", "promote a"]
    gone = [now(log(*lines[:n])).gone for n in range(5, 10)]
    assert gone == [set(), {"a"}, {"a", "c"}, {"a"}, set()]


def test_the_champion_is_never_dropped(log: Log) -> None:
    with pytest.raises(Unreadable, match=r"revision 2 .* the champion cannot be deleted"):
        state_of(log("promote a", "drop a"))


def test_fallbacks_are_counted_until_a_person_decides(log: Log) -> None:
    lines = ["promote a", "promote b", "fallback a", "fallback base", "promote c"]
    assert [now(log(*lines[:n])).fallbacks for n in range(1, 6)] == [0, 0, 1, 2, 0]


def test_a_canary_has_a_share_and_a_plan(log: Log) -> None:
    canary = now(log("promote a", "canary b 10%")).canary
    assert canary is not None
    assert (canary.version, canary.share, canary.due) == ("b", 0.1, None)
    events = log("promote a", "canary b 5%,25%,100% every 30m", "advance b 1")
    first, second = now(events[:2]).canary, now(events).canary
    assert first is not None
    assert second is not None
    assert (first.share, first.next_share, first.due) == (
        0.05,
        0.25,
        events[1].at + timedelta(minutes=30),
    )
    assert (second.share, second.next_share, second.due) == (
        0.25,
        1.0,
        events[2].at + timedelta(minutes=30),
    )
    assert second.since == first.since == events[1].at


def test_a_plan_that_stops_short_of_all_has_an_end(log: Log) -> None:
    canary = now(log("promote a", "canary b 5%,25% every 1h", "advance b 1")).canary
    assert canary is not None
    assert canary.due is None


@pytest.mark.parametrize(
    ("lines", "canary", "shadow"),
    [
        (["canary b 5%"], "b", None),
        (["shadow b"], None, "b"),
        (["canary b 5%", "shadow c"], "b", "c"),
        (["canary b 5%", "canary c 5%"], "c", None),
        (["shadow b", "shadow c"], None, "c"),
        (["shadow b", "canary b 5%"], "b", None),
        (["canary b 5%", "shadow b"], None, "b"),
        (["canary b 5%", "shadow c", "abort b"], None, "c"),
        (["canary b 5%", "shadow c", "abort c"], "b", None),
        (["canary b 5%", "shadow c", "compare c 100"], "b", "c"),
        (["canary b 5%", "shadow c", "promote b"], None, None),
        (["canary b 5%", "shadow c", "promote d"], None, None),
        (["canary b 5%", "shadow c", "fallback base"], None, None),
    ],
)
def test_what_stands_beside_the_champion(
    lines: list[str], canary: Any, shadow: Any, log: Log
) -> None:
    state = now(log("promote a", *lines))
    assert (state.canary and state.canary.version, state.shadow) == (canary, shadow)


def test_who_answers_and_who_is_concerned(log: Log) -> None:
    state = now(log("promote x", "promote z", "promote a", "canary b 5%", "shadow c"))
    assert state.answering == ("a", "b", "c")
    assert state.concerned == ("a", "b", "c", "z", "base")
    state = now(log("promote a", "fallback base"))
    assert (state.answering, state.concerned) == ((), ("base",))


def test_the_state_is_json(log: Log) -> None:
    import json

    state = now(log("promote a", "canary b 5%,100% every 30m"))
    said = json.loads(json.dumps(state.as_dict()))
    assert (said["champion"], said["canary"]["version"]) == ("a", "b")
    assert said["canary"]["plan"] == "5%, 100% every 30m"
    assert (said["canary"]["share"], said["canary"]["steps"]) == (0.05, 2)
    assert said["canary"]["next_step_at"].startswith("2026-01-01T00:32")


def test_a_promoted_champion_has_replaced_somebody(log: Log) -> None:
    lines = ["promote a", "promote b", "rollback a", "promote c", "fallback a"]
    replaced = [now(log(*lines[:n])).predecessor for n in range(1, 6)]
    assert replaced == [None, "a", None, "a", None]


def test_what_was_told_of_a_shadow_counts_until_another_comes(log: Log) -> None:
    lines = ["promote a", "shadow b", "compare b 100", "compare b 1000", "shadow c"]
    assert [now(log(*lines[:n])).compared for n in range(2, 6)] == [0, 100, 1000, 0]
