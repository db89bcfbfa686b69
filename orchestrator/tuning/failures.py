"""Why something failed that Ray ran: notes on a group's workers, and bad input among the causes."""

from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.train import UserCallback

from workers.config.base import InputError
from workers.run.events import EventLog
from workers.run.record import reason

_LONGEST = 300


class FailureNotes(UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller, on the driver's node, which sees the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
        """Some workers failed; the group is then started again, or has failed. Bad input fails
        again: an error that is raised here ends the group."""
        log = EventLog(self._folder)
        for rank, error in sorted(worker_exceptions.items()):
            found = getattr(error, "health_check_failure", error)
            is_lost = isinstance(found, RayActorError)
            log.note("lost" if is_lost else "failed", why(found if is_lost else error), worker=rank)
        for error in worker_exceptions.values():
            if found := bad_input(error):
                raise found


def bad_input(error: BaseException | None) -> InputError | None:
    """The bad input behind an error of Ray's, if that was the cause. A full disk, which has a type
    of its own, may have room the next time."""
    while error is not None and type(error) is not InputError:
        causes = (getattr(error, name, None) for name in ("cause", "controller_failure"))
        error = next((one for one in causes if one is not None), error.__cause__)
    return error


def cause(error: BaseException) -> BaseException:
    """What a task or an actor of Ray's raised, if the error is one of theirs."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def why(error: BaseException) -> str:
    """What an actor of Ray's failed by, in one line of bearable length."""
    error = cause(error)
    lost = f"its process is gone: {error}" if isinstance(error, RayActorError) else reason(error)
    line = " ".join(lost.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
