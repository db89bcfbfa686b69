"""Places that a file names: its paths begin at its own folder, wherever the command runs."""

from os.path import expanduser
from pathlib import Path


def placed(folder: Path, written: str) -> str:
    """A path that is written in a file of this folder; ~ is the home, as in a shell. No path stays
    none."""
    nowhere = not written.strip() or elsewhere(written)
    return written if nowhere else str(folder / expanduser(written))


def elsewhere(path: str) -> bool:
    """Whether it is the place of something that is no file of the machine's."""
    return "://" in path or path.startswith("hub:")
