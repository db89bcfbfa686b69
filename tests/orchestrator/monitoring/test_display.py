"""What people see while a study or a run goes on."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.config.job import JobSpec
from orchestrator.monitoring.console import Narrator, StudyProgress
from orchestrator.monitoring.display import Lines, Status, StudyDisplay, shown
from orchestrator.monitoring.stalls import Stall
from orchestrator.monitoring.status import RunStatus
from orchestrator.tuning.callbacks import StudyWatcher
from orchestrator.tuning.events import Best, TrialEvent
from orchestrator.tuning.lifecycle import begin
from orchestrator.tuning.searcher import StudySearch
from orchestrator.tuning.storage import storage
from workers.run.events import RunEvent

ROOT = Path(__file__).resolve().parents[3]


def stuck(seconds: float) -> RunStatus:
    stall = Stall(ranks=(1,), workers=4, step=36, phase="reduce", seconds=seconds, silent=False)
    return RunStatus(phase="reduce", stalls=(stall,))


def test_a_log_gets_a_line_when_it_is_time(capsys: pytest.CaptureFixture[str]) -> None:
    always, never = Lines(Narrator(), first=0.0), Lines(Narrator(), first=3600.0, last=3600.0)
    never(RunStatus(phase="loading"))
    assert capsys.readouterr().err == ""
    for phase in ("loading", "forward", "forward", "loading"):
        always(RunStatus(phase=phase))
    said = capsys.readouterr().err
    assert said.count("training · loading\n") == 2
    assert said.count("training · forward\n") == 1, "the same again is said most rarely"


def test_a_log_tells_of_a_new_stall_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(Narrator(), first=3600.0, last=3600.0)
    lines(stuck(31.0))
    assert "  ! rank 1 of 4 has stood in step 37 (reduce) for 31 s\n" in capsys.readouterr().err
    lines(stuck(32.0))
    assert capsys.readouterr().err == "", "it is known by now"
    lines(RunStatus())
    lines(stuck(31.0))
    assert "for 31 s" in capsys.readouterr().err, "it was over in between"
    lost = RunEvent(at=time.time() - 5, kind="lost", message="its process is gone", worker=1)
    lines(RunStatus(event=lost))
    assert "  ~ lost 5 s ago: its process is gone\n" in capsys.readouterr().err


def test_what_cannot_be_seen_now_may_be_seen_later() -> None:
    seen: list[Status] = []
    answers: Iterator[RunStatus | None] = iter([None, RunStatus(trial=1)])

    def look() -> RunStatus | None:
        return next(answers, None) or looked_last()

    def looked_last() -> RunStatus:
        if not ended:
            raise OSError("the disk is away")
        return RunStatus(trial=2)

    def broken(status: Status) -> None:
        raise RuntimeError(status)

    ended: list[bool] = []
    with shown(look, [broken, seen.append]):
        end = time.monotonic() + 20
        while not seen and time.monotonic() < end:
            time.sleep(0.05)
        ended.append(True)
    assert seen == [RunStatus(trial=1), RunStatus(trial=2)], "the end is seen too"


def test_a_study_is_looked_at_from_its_first_event_on(
    job: JobSpec, play: Callable[..., object]
) -> None:
    display = StudyDisplay(job, Narrator())
    assert display.look() is None, "its database may be in the making"
    play(job, ["finished", "cut"])
    assert display.look() is None
    display(TrialEvent(1, "started", {}))
    status = display.look()
    assert status is not None
    assert (status.ended["finished"], [run.trial for run in status.running]) == (1, [1])


CHILD = """
import time
from orchestrator.monitoring.display import run_display
from orchestrator.monitoring.console import Narrator
from pathlib import Path
narrator = Narrator()
with run_display(Path("nowhere"), narrator):
    time.sleep(1.5)
    narrator.say("a line that stays")
    time.sleep(1.5)
print("the result")
"""


@pytest.mark.usefixtures("processes")
def test_a_terminal_keeps_the_status_below_the_lines() -> None:
    reading, writing = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
    )
    os.close(writing)
    said = b""
    while piece := _read(reading):
        said += piece
    os.close(reading)
    result, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert result == "the result\n", "what is piped away is not swallowed"
    shown = said.decode()
    above = shown.index("a line that stays")
    assert shown.count("training · starting") >= 2
    assert "training · starting" in shown[:above]
    assert "training · starting" in shown[above:]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end was closed
        return b""


def test_a_study_gone_on_with_counts_what_ended_before(
    job: JobSpec, play: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Progress and gauges are told the whole study, not this session's part of it."""
    play(job, ["finished", "stopped", "failed", "finished", "cut", "cut"])
    told: list[TrialEvent] = []
    with storage(job.cluster) as store:
        study = begin(job, True, store)
        search = StudySearch(job, study, store, lambda number: f"{number:012x}")
        progress = StudyProgress(Narrator(), job.search.metric, job.search.trials)
        watcher = StudyWatcher(search, [told.append, progress])
        search.suggest("again")
        trial = SimpleNamespace(trial_id="again", last_result={})
        watcher.on_trial_start(trial=trial)
        search.note_failure("again", "lost")
        search.on_trial_complete("again", error=True)
        watcher.on_trial_error(trial=trial)
    started, failed = told
    assert started.states == {"finished": 2, "stopped": 1, "failed": 1, "running": 1, "waiting": 1}
    assert failed.states == {"finished": 2, "stopped": 1, "failed": 2, "waiting": 1}
    assert (started.number, started.best) == (4, Best(0, study.trials[0].value))
    assert "5 of 10 trials ended" in capsys.readouterr().err
