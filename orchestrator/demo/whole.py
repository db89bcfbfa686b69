"""Folders of the demo and of `smoke`, which are there whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def whole(target: Path, make: Callable[[Path], None]) -> Path:
    """The folder `target`, which `make` fills where it is not there yet; returns its path."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        complete = Path(temporary) / target.name
        complete.mkdir()
        make(complete)
        try:
            os.replace(complete, target)
        except OSError:
            if not target.is_dir():  # else: another process was faster
                raise
    return target
