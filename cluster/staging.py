"""The files that go to a cluster with a job: our own code, and what belongs to the job."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("cluster", "orchestrator", "search_spaces", "workers")
"""The top-level packages that a job needs: the code of this very installation."""


@contextmanager
def staged(files: Mapping[str, str]) -> Iterator[Path]:
    """A temporary folder with our packages and the given files: what a job's cluster gets."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="moetune-job-") as temporary:
        folder = Path(temporary)
        for package in PACKAGES:
            shutil.copytree(
                root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name, text in files.items():
            (folder / name).write_text(text)
        yield folder
