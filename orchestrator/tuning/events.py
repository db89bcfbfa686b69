"""What a study tells while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["started", "reported", "finished", "stopped", "retried", "failed"]


class Best(NamedTuple):
    """The study's best finished trial."""

    number: int
    value: float


@dataclass(frozen=True)
class TrialEvent:
    """Something that happened to a trial, for progress displays and gauges."""

    number: int
    kind: Kind
    params: Mapping[str, Any]
    """What the search chose, by dotted field."""
    step: int = 0
    steps: int = 0
    """Steps in all; 0 before its first report."""
    value: float | None = None
    """The study's metric, as last reported."""
    message: str = ""
    """Why it failed or is tried again."""
    states: Mapping[str, int] = field(default_factory=dict)
    """Trials of the study by state (running, waiting, finished, stopped, failed) after the event,
    those of earlier sessions with them."""
    best: Best | None = None
    """So far, in all sessions."""
