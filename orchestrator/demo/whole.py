"""Folders of the demo and of `smoke`, which are there whole or not at all."""

from collections.abc import Callable
from pathlib import Path

from workers.run.folders import new_folder


def whole(target: Path, make: Callable[[Path], None]) -> Path:
    """The folder `target`, which `make` fills where it is not there yet; returns its path."""
    if not target.is_dir():
        with new_folder(target, keep=True) as new:
            make(new)
    return target
