"""What a study tells while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["started", "reported", "finished", "stopped", "retried", "failed"]


@dataclass(frozen=True)
class TrialEvent:
    """Something that happened to a trial, for progress displays and gauges."""

    number: int
    kind: Kind
    params: Mapping[str, Any]
    """What the search chose, by dotted field."""
    step: int = 0
    steps: int = 0
    value: float | None = None
    """The study's metric, as last reported."""
    message: str = ""
    """Why it failed or is tried again."""
