"""Which workers of a run stand still, from what their files say."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from orchestrator.monitoring.format import duration
from workers.run.heartbeat import ENDED, Heartbeat
from workers.run.progress import Progress
from workers.run.watchdog import behind, idle

LONG = 10
"""So many times the usual is long."""
AT_LEAST_SECONDS = 30.0
"""Nothing shorter is long: machines are busy, and steps differ."""
UNKNOWN_SECONDS = 600.0
"""Long, where the usual is not known yet: for loading, the first step, the first evaluation."""
SILENT_WRITES = 15
"""A process that lives writes its file; so many writings missed, and it does not."""
_STEP_PHASES = ("data", "forward", "backward", "reduce", "update")


class Stall(BaseModel):
    """Workers that stand in the same place for a long time."""

    model_config = ConfigDict(frozen=True)

    ranks: tuple[int, ...]
    workers: int
    step: int
    """Optimizer steps done."""
    phase: str
    seconds: float
    silent: bool
    """Their processes write nothing any more: dead, frozen, or cut off."""

    def __str__(self) -> str:
        at = f"step {self.step + 1}" if self.phase in _STEP_PHASES else f"after step {self.step}"
        long = duration(self.seconds)
        have = "has" if len(self.ranks) == 1 else "have"
        if self.silent:
            return (
                f"{self._who()} {have} given no sign of life for {long}; last: {at}, {self.phase}"
            )
        place = f"in {at}" if self.phase in _STEP_PHASES else at
        return f"{self._who()} {have} stood {place} ({self.phase}) for {long}"

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for the same stall at a later moment."""
        return self.ranks, self.step, self.phase, self.silent

    def _who(self) -> str:
        if self.workers == 1:
            return "the worker"
        if len(self.ranks) == self.workers:
            return f"all {self.workers} ranks"
        plural = "" if len(self.ranks) == 1 else "s"
        return f"rank{plural} {', '.join(map(str, self.ranks))} of {self.workers}"


def stalls(workers: Sequence[Heartbeat], at_least: float = AT_LEAST_SECONDS) -> tuple[Stall, ...]:
    """The workers to look at. Those that only wait for them in a collective are not named.

    A dead or frozen process comes first; then those that are behind the others; and all of them,
    where all stand in the same place.
    """
    alive = [one for one in workers if one.phase != ENDED]
    silent = [one for one in alive if idle(one) - one.seconds > SILENT_WRITES * one.every]
    if silent:
        return _grouped(silent, silent=True)
    progress = next((one.progress for one in alive if one.progress), None)
    late = behind(alive)
    standing = [one for one in late if one.seconds > max(at_least, _long(one, progress))]
    return _grouped(standing, silent=False)


def _long(worker: Heartbeat, progress: Progress | None) -> float:
    if worker.phase in ("loading", "encode") or progress is None:
        return UNKNOWN_SECONDS
    usual = progress.step_seconds if worker.phase in _STEP_PHASES else progress.pause_seconds
    return UNKNOWN_SECONDS if usual is None else LONG * usual


def _grouped(workers: Sequence[Heartbeat], silent: bool) -> tuple[Stall, ...]:
    """One stall for each place."""
    places: dict[tuple[int, str], list[Heartbeat]] = {}
    for one in workers:
        places.setdefault((one.step, one.phase), []).append(one)
    return tuple(
        Stall(
            ranks=tuple(one.rank for one in there),
            workers=there[0].workers,
            step=step,
            phase=phase,
            seconds=round(max(idle(one) if silent else one.seconds for one in there), 1),
            silent=silent,
        )
        for (step, phase), there in places.items()
    )
