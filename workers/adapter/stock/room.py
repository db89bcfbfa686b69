"""Whether there is room for a checkpoint: looked at before anything is written. No torch."""

import shutil
from pathlib import Path

from workers.config.base import InputError
from workers.run.folders import nearest
from workers.run.memory import free_memory

SPARE = 64 << 20
"""Of disk and memory, for all that is no weight."""


def check_target(to: Path) -> None:
    """InputError unless `to` is a new name, or an empty folder, which will be replaced."""
    try:
        if not to.is_dir() and (to.exists() or to.is_symlink()):
            raise InputError(f"{to}: is a file; name a new folder")
        place, here = to.resolve(), Path.cwd()
        if here.is_relative_to(place):  # replaced, it would be gone below your feet
            which = "is" if here == place else "holds"
            raise InputError(f"{to}: {which} the folder you are in; name a new one")
        if place.is_dir() and any(place.iterdir()):
            raise InputError(f"{to}: is not empty; name a new folder")
        if place.is_mount():  # it cannot be renamed to
            raise InputError(f"{to}: is where a disk is mounted; name a new folder in it")
    except OSError as error:
        raise InputError(f"{to}: cannot be written: {error.strerror}") from None


def check_room(to: Path, disk: int, memory: int) -> None:
    """InputError where the disk that `to` is to lie on, or the memory, has fewer bytes, and on the
    disk some to spare for all that is no weight."""
    free, there = shutil.disk_usage(nearest(to)).free, free_memory()
    if free < disk + SPARE:
        raise InputError(
            f"{to}: the checkpoint takes {shown(disk)} and {shown(SPARE)} to spare, and the disk "
            f"has {shown(free)} free"
        )
    if there < memory:
        raise InputError(
            f"writing the checkpoint takes {shown(memory)} of memory, and {shown(there)} are free"
        )


def shown(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
