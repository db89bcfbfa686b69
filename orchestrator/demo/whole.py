"""Folders of the demo and of `smoke`, which are there whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from workers.adapter.folder import sweep


def whole(target: Path, make: Callable[[Path], None]) -> Path:
    """The folder `target`, which `make` fills where it is not there yet; returns its path. Who
    makes it sweeps what killed makers left; `moetune clean` knows their names too."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    complete = temporary / target.name
    try:
        complete.mkdir(parents=True)
        make(complete)
        _settle(complete, target)
        sweep(target, f".{target.name}.{'[0-9a-f]' * 32}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _settle(complete: Path, target: Path) -> None:
    try:
        os.replace(complete, target)
    except OSError:
        if not target.is_dir():  # else: another process was faster
            raise
