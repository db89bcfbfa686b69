"""Logs written by hand: a version is a letter here, and time goes by in minutes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.records import Event
from orchestrator.rollout.plan import stage

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
Log = Callable[..., list[Event]]


@pytest.fixture
def log() -> Log:
    """log("promote a", "canary b 5%,100% every 30m", …): one event a minute."""
    return _log


def _log(*lines: str) -> list[Event]:
    return [_event(revision, *line.split(maxsplit=2)) for revision, line in enumerate(lines, 1)]


def _event(revision: int, action: Any, version: str, how: str = "") -> Event:
    evidence: dict[str, Any] = {}
    match action:
        case "canary":
            evidence = stage(plan=how).evidence()
        case "advance":
            evidence = {"step": int(how)}
        case "compare":
            evidence = {"requests": int(how)}
    return Event(
        name="home",
        revision=revision,
        action=action,
        version=version,
        previous=None,
        actor="a",
        reason="r",
        evidence=evidence,
        at=BEGIN + timedelta(minutes=revision),
    )
