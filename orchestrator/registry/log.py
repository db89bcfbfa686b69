"""Appending to a name's log: decide on it as it stands, or decide again."""

import getpass
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from orchestrator.registry.models import Action, Event
from orchestrator.registry.registry import Registry
from orchestrator.registry.rules import check_name
from orchestrator.registry.state import state_of
from workers.config.base import InputError, Spec, StorageError

MAX_ACTOR = 200
ROUNDS = 50
"""Of deciding and appending, at most."""


class Decision(Spec):
    """What is to be appended."""

    action: Action
    version: str
    """A version's id, or `base`."""
    reason: str
    evidence: dict[str, Any] = Field(default_factory=dict)


Decide = Callable[[list[Event]], Decision | None]
"""From the log as it stands; None leaves it so. Raises InputError where that is refused."""


def append(registry: Registry, name: str, actor: str, decide: Decide) -> Event | None:
    """Decide on the log as it stands and append; decide again when it has moved meanwhile.

    StorageError where it moves whenever it was read: every round that loses is one that somebody
    else has won, and so many others there are not.
    """
    check_name(name, "name")
    if not actor.strip() or len(actor) > MAX_ACTOR:
        raise InputError(f"{name}: an actor of 1 to {MAX_ACTOR} characters is needed")
    for _ in range(ROUNDS):
        events = registry.history(name)
        decision = decide(events)
        if decision is None:
            return None
        event = next_event(name, actor.strip(), decision, events)
        if registry.append(event):
            return event
    raise StorageError(f"{name}: {ROUNDS} times others wrote into its log first; try again")


def appended(registry: Registry, name: str, actor: str, decide: Decide) -> Event:
    """The same where `decide` never returns None: a person's decision is an event or an error."""
    event = append(registry, name, actor, decide)
    assert event is not None
    return event


def next_event(name: str, actor: str, decision: Decision, events: list[Event]) -> Event:
    """The event that a decision on this log is."""
    before = state_of(events)
    return Event(
        name=name,
        revision=events[-1].revision + 1 if events else 1,
        previous=before.champion if before else None,
        actor=actor,
        at=datetime.now(UTC),
        **decision.model_dump(),
    )


def this_user() -> str:
    """Who decides; in a container the user may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
