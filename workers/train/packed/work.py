"""What passes between a pack and who fills it. Free of torch and of Ray.

A pack asks for its `Work`, and tells an `Outcome` for each member whose next report was wanted.
"""

from dataclasses import dataclass
from typing import Protocol

from workers.config.base import InputError
from workers.run.record import Metrics, reason
from workers.train.task import RunTask

Outcome = Metrics | Exception
"""A member's next report, with `done` and `folder`; or why there will be none: it has left then."""


class RunFailedError(RuntimeError):
    """A packed run failed for another reason than bad input; its message is the reason."""


@dataclass(frozen=True)
class Work:
    """What a pack does next, in this order."""

    serial: int = 0
    """Number of this Work, from 1; told with outcomes, so that a member that was replaced under its
    name does not get those of the one before."""
    leave: tuple[str, ...] = ()
    """Members to let go."""
    join: tuple[RunTask, ...] = ()
    """Runs to take in; a run's name is that of its folder."""
    want: tuple[str, ...] = ()
    """Members, new ones among them, whose next report is wanted."""
    over: bool = False
    """There is nothing left to do: the pack ends."""


class WorkQueue(Protocol):
    """Where a pack gets its work. `Work()`, with serial 0, is no news."""

    def take(self, *, wait: bool) -> Work:
        """What is new since the last call; `wait` for it some seconds at most, or not at all."""

    def tell(self, serial: int, outcomes: dict[str, Outcome]) -> None:
        """What came of members, after the Work of that number."""


def told(error: Exception) -> Exception:
    """An error as it travels: whoever gets it loads no module of ours but this one for it. Bad
    input, which ends a study, stays what it is."""
    if type(error) is InputError:
        return InputError(str(error))
    return RunFailedError(reason(error))
