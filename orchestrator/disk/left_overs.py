"""What killed processes leave behind. A file or folder gets its own name when it is whole; until
then it has one that only its writer gives, in its place. All else that is hidden is somebody's."""

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from workers.run.files import DELETED, LEFT_SECONDS

FolderKind = Literal[
    "storage", "versions", "study", "inputs", "run", "ranks", "checkpoints", "watched rows"
]
_HEX = "[0-9a-f]{32}"
_FILE = rf"\.({_HEX}|\d+)"
"""How the hidden name of a file ends; the number of a process is of versions before."""
_WRITERS: dict[FolderKind, re.Pattern[str]] = {
    "storage": re.compile(rf"\.smoke\.{_HEX}|\.demo-summary\.json{_FILE}"),
    "versions": re.compile(rf"\.{_HEX}"),
    "study": re.compile(rf"\.(job\.json|study\.id|report\.html){_FILE}"),
    "inputs": re.compile(rf"\.(dtype|[0-9a-f]{{12}}(\.base(\.samples)?)?\.json){_FILE}"),
    "run": re.compile(
        rf"\.(adapter|checkpoints)\.{_HEX}(\.old)?"
        rf"|\.((train|exchange|samples|base(\.samples)?)\.json|progress\.jsonl|error\.txt){_FILE}"
    ),
    "ranks": re.compile(rf"\.\d+\.json{_FILE}"),
    "checkpoints": re.compile(rf"\.step-\d{{8,}}\.({_HEX}(\.old)?|fetched)"),
    "watched rows": re.compile(rf"\.(train|validation)\.jsonl{_FILE}"),
}
"""A run's adapter, `ranks` and checkpoints are written by workers.train, the rest by us.
`fetched` is of versions before."""
_GOING = re.compile(re.escape(DELETED) + _HEX)


def left_over(path: Path, place: FolderKind) -> bool:
    """Whether a process that was killed has left it there, in a folder of that kind: it has a name
    for the time of its making or its deletion, and nobody has written to it for a day."""
    with suppress(OSError):
        return any(one.fullmatch(path.name) for one in (_WRITERS[place], _GOING)) and is_old(path)
    return False


def is_old(path: Path) -> bool:
    """Whether nobody has written to it for a day. Raises OSError where it is gone."""
    return path.lstat().st_mtime < time.time() - LEFT_SECONDS
