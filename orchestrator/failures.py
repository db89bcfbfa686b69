"""Notes which workers of a Ray Train group failed: a process that was killed cannot do so."""

from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from workers.train.events import EventLog
from workers.train.record import reason

_LONGEST = 300


class FailureNotes(UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller, on the driver's node, which sees the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
        """Some workers failed; the group is then started again, or has failed."""
        log = EventLog(self._folder)
        for rank, error in sorted(worker_exceptions.items()):
            cause = getattr(error, "health_check_failure", error)
            if isinstance(cause, RayActorError):
                log.note("lost", _short(f"its process is gone: {cause}"), worker=rank)
            else:
                log.note("failed", _short(reason(error)), worker=rank)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
