"""What a run of `moetune demo` has left, and a copy of it to show things on."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pictures.terminal import COMMAND

SUMMARY = "demo-summary.json"
"""What the demo writes last."""
NOT_SHOWN = shutil.ignore_patterns("checkpoints", "tune", "group", "audit", "*.lock")


@dataclass(frozen=True)
class DemoRun:
    """A storage folder of the demo, whose run came to its end."""

    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """What it measured, and what it was answered."""
        return dict(json.loads((self.folder / SUMMARY).read_text()))

    def copied(self, to: Path) -> "DemoRun":
        """The same elsewhere, where something may be promoted."""
        shutil.copytree(self.folder, to, ignore=NOT_SHOWN)
        return DemoRun(to)


def newest(storage: Path) -> DemoRun | None:
    """The latest run below the demo's storage folder that came to its end."""
    found = sorted(path.parent for path in storage.glob(f"run-*/{SUMMARY}"))
    return DemoRun(found[-1]) if found else None


def made(storage: Path) -> DemoRun:
    """The latest run; where there is none the demo runs, which takes some ten minutes."""
    run = newest(storage)
    if run is None:
        words = (*COMMAND, "demo", "--storage", str(storage))
        subprocess.run(words, stdout=subprocess.PIPE, check=True)  # no terminal: it ends by itself
        run = newest(storage)
    assert run is not None, f"the demo left no {SUMMARY} in {storage}"
    return run
