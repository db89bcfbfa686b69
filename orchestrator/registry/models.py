"""What the registry answers with: versions, and the events of a name's log."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from workers.config.base import Spec

Action = Literal[
    "promote",
    "rollback",
    "canary",
    "shadow",
    "advance",
    "abort",
    "fallback",
    "compare",
    "drop",
    "delete",
]
ENDS: tuple[Action, ...] = ("abort", "compare", "drop", "delete")
"""Those whose version need not be there (any more)."""
BASE = "base"
"""Stands for the bare base model where a version's id is expected."""


class Record(Spec):
    """Base of all of them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self.model_dump(mode="json")


class Version(Record):
    """One trained adapter, for ever."""

    id: str
    """First 12 hex digits of `digest`: what people type."""
    digest: str
    """SHA-256 of the folder's content."""
    study: str
    trial: int | None
    folder: Path
    metrics: dict[str, Any]
    created: datetime


class KeptEvaluation(Record):
    """What a version was measured on after its training, and what that gave."""

    asked: dict[str, Any]
    """Of `moetune evaluate`: what was asked for."""
    figures: dict[str, Any]
    """By what was measured: the bare base, and the version."""
    at: datetime

    def rows(self) -> list[tuple[str, str, str, str | None, Any]]:
        """Lines of a table: on what, of what, task, metric (None: the task's own), value."""
        if "lm_eval" not in self.asked:
            return [
                (str(self.asked["data"]), label, task, None, value)
                for label, values in self.figures.items()
                for task, value in values.items()
            ]
        return [
            ("lm-eval", label, task, metric, value)
            for label, told in self.figures.items()
            for task, one in told["tasks"].items()
            for metric, value in one["metrics"].items()
        ]


class Event(Record):
    """One line of a name's log. Versions are given by their ids."""

    name: str
    revision: int
    action: Action
    """`promote`, `rollback`: `version` is the champion from here on. `fallback`: the same, on the
    guard's own decision; `version` may be `base`. `canary`, `shadow`: `version` stands beside the
    champion. `advance`: the canary's plan took its next step. `abort`: the canary or shadow
    `version` ended. `compare`: what a shadow's answers were like; changes nothing. `drop`:
    `version`, which had a part in the past, was deleted; rollbacks pass it over. `delete`: the
    name was deleted with all that its log had before; `version` was its champion."""
    version: str
    previous: str | None
    """The champion before this event."""
    actor: str
    reason: str
    evidence: dict[str, Any]
    """What the decision rests on. Of a canary also its `share`, and its `plan` if it has one."""
    at: datetime
