"""What the bare base gives on the validation rows: the first thing that an adapter must beat.

STUDY/inputs/KEY.base.json   of a study's trials (KEY as in workers.train.used)
RUN/base.json                of a run alone

Some of its answers lie beside it (workers.run.samples).
"""

import json
import time
from contextlib import ExitStack
from pathlib import Path

from workers.config.base import InputError
from workers.run.files import locked, write_text
from workers.run.record import Metrics
from workers.run.samples import samples_beside, write_samples
from workers.train.loop import TrainingRun
from workers.train.used import base_file

LOOK_SECONDS = 0.5
"""How often a run looks whether another one has measured the base."""


def baseline(run: TrainingRun) -> Metrics:
    """The base's figures as a run reports its own, `{"validation": {…}}`. The first run to come
    measures it, and others of the study wait for that. Every worker of a run calls this."""
    file = _file(run)
    with ExitStack() as turn:
        while (known := _agreed(run, file, turn)) is None:
            run.heartbeat.moving()
            time.sleep(LOOK_SECONDS)
        if not known:
            known, samples = run.measure_base()
            if run.world.is_first:
                write_samples(samples_beside(file), samples)
                used = run.inputs.used.model_dump(mode="json")
                write_text(file, json.dumps({"used": used, "metrics": known}, indent=2) + "\n")
        return known


def _file(run: TrainingRun) -> Path:
    if run.plan.shared is None:
        return run.plan.folder / "base.json"
    return base_file(run.plan.shared, run.spec)


def _agreed(run: TrainingRun, file: Path, turn: ExitStack) -> Metrics | None:
    """What the first worker knows, for all of them; None while another run measures."""
    mine = _known(run, file, turn) if run.world.is_first else None
    found: Metrics | None = run.world.gather(mine)[0]
    return found


def _known(run: TrainingRun, file: Path, turn: ExitStack) -> Metrics | None:
    """What was measured; nothing where it is this run's turn, which then lasts as long as `turn`;
    None while it is another one's."""
    if not file.exists() and not _taken(file.with_suffix(".lock"), turn):
        return None
    if not file.exists():  # asked again, for its writer may just have let go
        return {}
    try:
        written = json.loads(file.read_text())
        same = written["used"] == run.inputs.used.model_dump(mode="json")
        metrics: Metrics = written["metrics"] if same else {}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file}: is damaged; remove it to have it made anew") from None
    return metrics


def _taken(path: Path, turn: ExitStack) -> bool:
    """Whether it is this process's turn now; the system ends it when the process dies."""
    try:
        with ExitStack() as opened:
            if not opened.enter_context(locked(path)):
                return False
            turn.enter_context(opened.pop_all())
    except OSError:  # a filesystem without locks, where several may measure at once
        pass
    return True
