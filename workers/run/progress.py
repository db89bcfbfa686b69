"""How far a run is after a step, and how long it will take. Readable without torch."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from workers.config.losses import AUXILIARY

RECENT_STEPS = 20
"""Speed is the mean over so many: steady to read, and soon right after a change."""


class Figures(Protocol):
    """What is read of a `workers.train.step.StepResult`."""

    @property
    def losses(self) -> Mapping[str, float]: ...
    @property
    def lr(self) -> float: ...
    @property
    def tokens(self) -> int: ...


class Progress(BaseModel):
    """One step's figures, over all workers."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    step: int
    """Optimizer steps done."""
    steps: int
    """Optimizer steps in all."""
    epoch: float
    workers: int
    loss: float | None
    """Of this step, with weights; None where it was not finite and the step was skipped."""
    auxiliary: dict[str, float] = {}
    """The losses of the routed layers before their weights, by name; without those that are off or
    were not finite."""
    lr: float
    tokens_per_second: float
    """Real tokens of all workers, prompts included; evaluations are not in the time."""
    step_seconds: float
    pause_seconds: float | None
    """From the last step before an evaluation to the first one after it; None before there was
    one."""
    eta_seconds: float
    """Until the run's end, evaluations included once there was one."""

    def report(self) -> dict[str, Any]:
        """As part of what `TrainingRun.advance` reports, for an Observer."""
        train = ("loss", "lr", "tokens_per_second", "step_seconds")
        values = self.model_dump()
        auxiliary = values.pop("auxiliary")
        figures = {name: values.pop(name) for name in train}
        there = {name: value for name, value in figures.items() if value is not None}
        return {**values, "train": {**there, **auxiliary}}


class StepTimer:
    """Times a run's steps. It reads only what a step has read from the device already."""

    def __init__(
        self, steps: int, every: int, workers: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`every`: steps between two evaluations."""
        self._clock = clock
        self._steps, self._every, self._workers = steps, every, workers
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)
        self._taken = 0
        self._last: float | None = None
        self._pause: float | None = None

    def start(self) -> None:
        """Steps follow; what went before was an evaluation, or the loading."""
        now = self._clock()
        if self._last is not None:
            self._pause = now - self._last
        self._last = now

    def step(self, step: int, epoch: float, result: Figures) -> Progress:
        """The figures after a step."""
        now = self._clock()
        last = now if self._last is None else self._last
        if self._taken == 1:  # the first step allocates, compiles, and says nothing of the others
            self._recent.clear()
        self._taken += 1
        self._recent.append((now - last, result.tokens))
        self._last = now
        seconds = math.fsum(taken for taken, _ in self._recent)
        tokens = sum(tokens for _, tokens in self._recent)
        a_step = seconds / len(self._recent)
        return Progress(
            step=step,
            steps=self._steps,
            epoch=epoch,
            workers=self._workers,
            loss=_finite(result.losses["loss"]),
            auxiliary={
                name: value
                for name, value in result.losses.items()
                if name in AUXILIARY and math.isfinite(value)
            },
            lr=result.lr,
            tokens_per_second=tokens / seconds if seconds else 0.0,
            step_seconds=a_step,
            pause_seconds=self._pause,
            eta_seconds=(self._steps - step) * a_step + self._pauses(step) * (self._pause or 0.0),
        )

    def _pauses(self, step: int) -> int:
        """Evaluations to come after `step`; that of the step itself is one."""
        return math.ceil(self._steps / self._every) - math.ceil(step / self._every) + 1


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
