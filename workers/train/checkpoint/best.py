"""The best evaluation's adapter, which a run with early stopping leaves: a checkpoint has it too.

    RUN/adapter, RUN/samples.json             of the best evaluation so far
    RUN/checkpoints/step-00000040/best/       the same when that checkpoint was made

A run that is cut off may have found a better one since, at a step that it has not reached when it
goes on: with another number of workers it may never find it again.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from workers.run.files import write_text
from workers.run.folders import new_folder
from workers.run.record import RunRecord

_BEST = "best"


def keep_best(run: RunRecord, checkpoint: Path) -> None:
    """Put what the run leaves so far into a checkpoint that is being written. On one filesystem it
    stands on the disk once: files of adapters are never changed, only replaced."""
    kept = _record(checkpoint)
    shutil.copytree(run.adapter, kept.adapter, copy_function=_link)
    if run.samples.exists():
        shutil.copyfile(run.samples, kept.samples)


def bring_back_best(checkpoint: Path, run: RunRecord) -> None:
    """Let the run have what it left when the checkpoint was made."""
    kept = _record(checkpoint)
    if not kept.adapter.is_dir():  # there was no evaluation yet
        return
    with new_folder(run.adapter) as new:
        shutil.copytree(kept.adapter, new, copy_function=_link, dirs_exist_ok=True)
    if kept.samples.exists():
        write_text(run.samples, kept.samples.read_text())


def best_adapter(checkpoint: Path) -> Path | None:
    """Where a checkpoint has it; None where it has none."""
    adapter = _record(checkpoint).adapter
    return adapter if adapter.is_dir() else None


def _record(checkpoint: Path) -> RunRecord:
    return RunRecord(checkpoint / _BEST)


def _link(source: str, target: str) -> str:
    """A further name for the file; a copy where the filesystem has no such thing."""
    with suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copyfile(source, target)
