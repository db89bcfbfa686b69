"""What killed processes leave behind. A file or folder gets its own name when it is whole; until
then it has one that only its writer gives, in its place. All else that is hidden is somebody's."""

import re
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Literal

from workers.adapter.folder import LEFT_SECONDS

FolderKind = Literal["storage", "versions", "study", "inputs", "trial", "ranks", "checkpoints"]
GOING = ".moetune-deleted-"
"""How the name begins of what is being deleted, wherever it lay."""
_HEX = "[0-9a-f]{32}"
_WRITERS: dict[FolderKind, re.Pattern[str]] = {
    "storage": re.compile(rf"\.smoke\.{_HEX}"),
    "versions": re.compile(rf"\.{_HEX}"),
    "study": re.compile(r"\.(job\.json|study\.id|report\.html)\.\d+"),
    "inputs": re.compile(rf"\.[0-9a-f]{{12}}(\.json\.{_HEX}|\.base(\.samples)?\.json\.\d+)"),
    "trial": re.compile(
        rf"\.adapter\.{_HEX}(\.old)?"
        r"|\.((train|exchange|samples)\.json|progress\.jsonl|error\.txt)\.\d+"
    ),
    "ranks": re.compile(r"\.\d+\.json\.\d+"),
    "checkpoints": re.compile(rf"\.step-\d{{8,}}\.({_HEX}|fetched)"),
}
"""A trial's adapter, `ranks` and checkpoints are written by workers.train, the rest by us."""
_GOING = re.compile(re.escape(GOING) + _HEX)


def left_over(path: Path, place: FolderKind) -> bool:
    """Whether a process that was killed has left it there, in a folder of that kind: it has a name
    for the time of its making or its deletion, and nobody has written to it for a day."""
    with suppress(OSError):
        return any(one.fullmatch(path.name) for one in (_WRITERS[place], _GOING)) and is_old(path)
    return False


def is_old(path: Path) -> bool:
    """Whether nobody has written to it for a day. Raises OSError where it is gone."""
    return path.lstat().st_mtime < time.time() - LEFT_SECONDS


def going(path: Path) -> Path:
    """A new name beside it, for the time of its deletion."""
    return path.with_name(f"{GOING}{uuid.uuid4().hex}")
