"""What a person sees while a study or a training run goes on: one line for each event."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.monitoring.format import number, plain
from orchestrator.tuning.events import TrialEvent
from orchestrator.tuning.study import ENDS

if TYPE_CHECKING:
    from cluster.session import Session


class Narrator:
    """Prints lines with the time since it was made, to stderr: stdout is for results."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print(f"[{minutes:02d}:{seconds:02d}] {plain(text)}", file=sys.stderr, flush=True)


def dashboard_line(cluster: "Session") -> str:
    """Where Ray's dashboard is; on a terminal also the command that shows the token that it asks
    for."""
    show = cluster.showing_token if sys.stderr.isatty() else None
    return f"dashboard {cluster.dashboard_url}" + (f" (its token: {show})" if show else "")


class StudyProgress:
    """Tells a study's events: `trial 2 · 20/40 steps · validation/loss 1.234 · best 1.1`."""

    def __init__(self, narrator: Narrator, metric: str, trials: int) -> None:
        self._narrator, self._metric, self._trials = narrator, metric, trials

    def __call__(self, event: TrialEvent) -> None:
        """Print the event."""
        self._narrator.say(" · ".join(self._parts(event)))

    def _parts(self, event: TrialEvent) -> list[str]:
        parts = [f"trial {event.number}", event.kind]
        if event.kind == "started":
            parts += [f"{path} {number(value)}" for path, value in event.params.items()]
        elif event.steps:
            parts.append(f"{event.step}/{event.steps} steps")
        if event.value is not None and event.kind != "started":
            parts.append(f"{self._metric} {number(event.value)}")
        if event.message:
            parts.append(event.message)
        if event.kind in ENDS:
            ended = sum(event.states.get(state, 0) for state in ENDS)
            parts.append(f"{ended} of {self._trials} trials ended")
        if event.best and event.kind == "finished":
            parts.append(f"best {number(event.best.value)} (trial {event.best.number})")
        return parts


@contextmanager
def rows_progress() -> Iterator[Callable[[str, int], None]]:
    """Shows how many rows of a source are read, on a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading rows") as status:
        yield lambda source, done: status.update(f"{source}: {done} rows")


def training_line(report: Mapping[str, Any]) -> str:
    """One report of a training run, as a line."""
    train, validation = report["train"], report["validation"]
    return (
        f"{report['step']}/{report['steps']} steps · loss {train['loss']:.3f} · validation loss "
        f"{validation['loss']:.3f} · {train['tokens_per_second']:.0f} tokens/s"
    )
