"""Names' states as their logs grow, and as they hold what cannot be read here."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.registry.log import Decision
from orchestrator.registry.logs import Logs
from orchestrator.registry.models import Event, Version
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Unreadable, state_of
from orchestrator.rollout.controller import RolloutController
from workers.config.base import StorageError

Log = Callable[..., list[Event]]


class Reads:
    """A log in memory that counts the events it hands out."""

    def __init__(self, events: list[Event]) -> None:
        self.rows = [event.model_dump(mode="json") for event in events]
        self.read = 0
        self.away = False

    def __call__(self, name: str, since: int) -> list[dict[str, Any]]:
        if self.away:
            raise StorageError("the database is away")
        found = [row for row in self.rows if row["revision"] >= since]
        self.read += len(found)
        return found


def test_a_look_reads_what_is_new(log: Log) -> None:
    lines = [f"promote v{number}" for number in range(300)]
    events = log(*lines, "rollback v298", "canary b 5%,100% every 30m", "advance b 0")
    reads = Reads(events[:200])
    logs = Logs(reads)
    assert logs.state("home") == state_of(events[:200])
    reads.rows += [event.model_dump(mode="json") for event in events[200:]]
    reads.read = 0
    assert logs.state("home") == state_of(events)
    assert reads.read == len(events) - 200 + 1
    reads.read = 0
    reads.away = True
    with pytest.raises(StorageError, match="away"):
        logs.state("home")
    reads.away = False
    assert logs.state("home") == state_of(events)
    assert reads.read == 1


def test_another_log_in_its_place_is_read_from_its_beginning(log: Log) -> None:
    reads = Reads(log("promote a", "promote b"))
    logs = Logs(reads)
    logs.state("home")
    for other in (log("promote c", "promote d", "promote e"), log("promote f"), []):
        reads.rows = [event.model_dump(mode="json") for event in other]
        assert logs.state("home") == state_of(other)


@pytest.mark.parametrize(
    ("action", "evidence"),
    [
        ("pause", {}),
        ("canary", {}),
        ("canary", {"plan": {"steps": [0.1], "by": "region"}}),
        ("advance", {"step": 1}),
        ("compare", {}),
    ],
)
def test_an_event_that_is_not_known_here_leaves_the_name_as_it_was(
    action: str, evidence: dict[str, Any], log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    events = log("promote a", "promote b", "promote c")
    reads = Reads(events)
    reads.rows[2] |= {"action": action, "evidence": evidence}
    logs = Logs(reads)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert logs.state("home") == state_of(events[:2])
    [said] = caplog.messages
    assert "home: revision 3 of its log cannot be read here" in said
    reads.rows[2] = events[2].model_dump(mode="json")
    assert logs.state("home") == state_of(events)


def test_a_step_that_the_plan_does_not_have_is_not_taken(log: Log) -> None:
    with pytest.raises(Unreadable, match="home: revision 3"):
        state_of(log("promote a", "canary b 5%,100% every 30m", "advance b 2"))


@pytest.fixture
def newer(registry: Registry, versions: list[Version], tmp_path: Path) -> Registry:
    """A registry with two names, of which a newer moetune has written into the first's log."""
    for name in ("garden", "home"):
        promote(registry, versions[0], name, actor="ann", metric="validation/loss")
    with sqlite3.connect(tmp_path / "moetune.db") as database:
        database.execute(
            "INSERT INTO moetune_events SELECT name, 2, 'pause', version, previous, actor, reason,"
            " evidence, at FROM moetune_events WHERE name = 'garden'"
        )
    return registry


def test_one_names_newer_event_stops_no_other_name(
    newer: Registry, versions: list[Version]
) -> None:
    promote(newer, versions[1], "home", actor="ann", metric="validation/loss")
    champions = {name: state.champion for name, state in newer.rollouts().items()}
    assert champions == {"garden": versions[0].id, "home": versions[1].id}
    assert newer.resolve("garden") == versions[0]
    with pytest.raises(StorageError, match="garden: revision 2 of its log cannot be read here"):
        promote(newer, versions[1], "garden", actor="ann", metric="validation/loss")


def test_a_name_that_cannot_be_looked_after_keeps_no_other_from_it(newer: Registry) -> None:
    def adviser(state: Any, _: Any) -> Decision:
        return Decision(action="fallback", version="base", reason="broken")

    [event] = RolloutController(newer, [adviser]).ask(newer.rollouts().values())
    assert (event.name, event.action) == ("home", "fallback")
