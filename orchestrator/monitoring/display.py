"""Shows what goes on while it goes on: on a terminal, in a log, and as a submitted job's note."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.monitoring.console import Narrator, StudyProgress
from orchestrator.monitoring.status import StudyStatus, run_status, study_status
from orchestrator.tuning.events import TrialEvent

if TYPE_CHECKING:
    from cluster.notes import Note
    from orchestrator.config.job import JobSpec
    from orchestrator.tuning.study import Study

LOOK_SECONDS = 1.0
_FIRST_LINES_SECONDS, _LAST_LINES_SECONDS = 10.0, 300.0
_LINES_SHARE = 20
"""A log gets new lines after a twentieth of the time so far: soon at first, and few in all."""


class Status(Protocol):
    """What can be shown: a RunStatus or a StudyStatus."""

    @property
    def news(self) -> frozenset[object]:
        """What people should hear of at once, if it was not there before."""

    def lines(self) -> list[str]:
        """It in words."""


Screen = Callable[[Status], None]
"""Shows a status."""


@contextmanager
def shown(look: Callable[[], Status | None], screens: Sequence[Screen]) -> Iterator[None]:
    """Look every second, in a thread, until the block ends, and once more then. Whatever goes wrong
    with it is no reason to end what is shown: the next second may be better."""
    ended = threading.Event()

    def show(status: Status) -> None:
        for screen in screens:
            with suppress(Exception):
                screen(status)

    def watch() -> None:
        last = False
        while not last:
            last = ended.wait(LOOK_SECONDS)
            with suppress(Exception):
                if status := look():
                    show(status)

    thread = threading.Thread(target=watch, name="moetune-display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5 * LOOK_SECONDS)


@contextmanager
def terminal(narrator: Narrator) -> Iterator[Screen]:
    """The screen for people: lines that stay at the bottom of a terminal, those of the narrator
    above them; elsewhere, lines as time goes by."""
    if not sys.stderr.isatty():
        yield Lines(narrator)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield lambda status: live.update(Text("\n".join(status.lines())), refresh=True)


class Lines:
    """Says the status at times that lie further and further apart, most rarely where it does not
    change; and at once what people should know."""

    def __init__(
        self,
        narrator: Narrator,
        first: float = _FIRST_LINES_SECONDS,
        last: float = _LAST_LINES_SECONDS,
    ) -> None:
        """`first`, `last`: the least and the most seconds between two times."""
        self._narrator, self._first, self._last = narrator, first, last
        self._began = self._said = time.monotonic()
        self._known: frozenset[object] = frozenset()
        self._lines: list[str] = []

    def __call__(self, status: Status) -> None:
        """Say it, if it is time."""
        now, lines = time.monotonic(), status.lines()
        wait = min(max(self._first, (now - self._began) / _LINES_SHARE), self._last)
        wait = self._last if lines == self._lines else wait
        news, self._known = status.news - self._known, status.news
        if now - self._said < wait and not news:
            return
        self._said, self._lines = now, lines
        for line in lines:
            self._narrator.say(line)


class StudyDisplay:
    """A listener to a study that says its events, and shows what goes on between them."""

    def __init__(self, job: "JobSpec", narrator: Narrator) -> None:
        search = job.search
        self._job = job
        self._tell = StudyProgress(narrator, search.metric, search.trials)
        self._begun = threading.Event()
        self._study: Study | None = None

    def __call__(self, event: TrialEvent) -> None:
        """Something happened to a trial."""
        self._begun.set()
        self._tell(event)

    def look(self) -> StudyStatus | None:
        """The study; None before its first event: its database may be in the making until then."""
        from orchestrator.tuning.study import Study

        if not self._begun.is_set():
            return None
        self._study = self._study or Study.open(self._job.cluster, self._job.name)
        return study_status(self._study)


@contextmanager
def study_display(
    job: "JobSpec", narrator: Narrator, note: "Note | None" = None
) -> Iterator[StudyDisplay]:
    """A listener for the job's study, which is shown to people, and in a submitted job's `note` to
    `moetune status`."""
    display = StudyDisplay(job, narrator)

    def write(status: Status) -> None:
        if note and isinstance(status, StudyStatus):
            note.write(status.model_dump_json())

    with terminal(narrator) as screen, shown(display.look, [screen, write]):
        yield display


@contextmanager
def run_display(folder: Path, narrator: Narrator) -> Iterator[None]:
    """Show the run in `folder` to people until the block ends."""
    with terminal(narrator) as screen, shown(lambda: run_status(folder), [screen]):
        yield
