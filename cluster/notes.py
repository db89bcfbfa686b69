"""A line of text that a submitted job keeps up to date for those who ask the dashboard.

It lies in Ray's log folder on the driver's node: the one place there whose files a dashboard hands
out. So no shared folder is needed, and no port but the dashboard's.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.session import Session

SUBMITTED = "MOETUNE_SUBMITTED"
"""Set in the environment of jobs that we submit."""


@dataclass(frozen=True)
class Note:
    """The note of this process's job."""

    path: Path

    def write(self, line: str) -> None:
        """Replace the text, at once or not at all. Raises OSError."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(line + "\n")
        os.replace(temporary, self.path)


def own_note(session: Session) -> Note | None:
    """The note of the submitted job whose driver this is; None in any other process."""
    import ray

    if SUBMITTED not in os.environ or session.log_folder is None:
        return None
    driver = ray.get_runtime_context().get_job_id()
    return Note(session.log_folder / note_name(driver))


def note_name(driver: str) -> str:
    """Name of the file, given Ray's id of the driver."""
    return f"moetune-{driver}.json"
