"""A run in a pack: its attempt, its random state, and where it is between two reports."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from workers.layers.ops.random_state import mixed
from workers.run.heartbeat import HeartbeatWriter
from workers.run.record import Metrics, reason
from workers.train.attempt import Attempt, watched
from workers.train.checkpoint.state import random_states, set_random_states
from workers.train.evaluation.evaluator import ScoredRows
from workers.train.packed.joint_step import JoiningStep
from workers.train.step import StepResult


class OwnState:
    """A run's random state, which is the process's only for what the run does alone."""

    def __init__(self) -> None:
        self.states: Mapping[str, Any] = random_states()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside the block the process's generators are the run's."""
        former = random_states()
        set_random_states(self.states)
        try:
            yield
        finally:
            self.states = random_states()
            set_random_states(former)


class SharedHeartbeat(HeartbeatWriter):
    """The heartbeat of a run in a pack. What moves there moves all: each waits for the others."""

    def __init__(self, rank: int, workers: int, everyone: Mapping[str, "SharedHeartbeat"]) -> None:
        super().__init__(rank, workers)
        self._everyone = everyone

    def beat(self, phase: str, step: int | None = None) -> None:
        """See HeartbeatWriter."""
        super().beat(phase, step)
        self.moving()

    def moving(self) -> None:
        """See HeartbeatWriter."""
        super().moving()
        for one in [*self._everyone.values()]:
            HeartbeatWriter.moving(one)


class PackSlot:
    """One run of a pack."""

    def __init__(self, attempt: Attempt, own_state: OwnState) -> None:
        self.attempt, self.own_state = attempt, own_state
        self.run = attempt.run
        self.name = attempt.run.plan.folder.name
        self._until: int | None = None
        """The step whose report somebody waits for."""
        self._ended = False
        self._watching = ExitStack()

    @property
    def is_due(self) -> bool:
        """Whether its report is to be made now."""
        return self._until is not None and self.run.step >= self._until

    def wanted(self) -> None:
        """Somebody waits for its next report; asked again and again until that is there."""
        if self._until is not None:
            return
        self._ended = self.run.done
        self._until = self.run.step if self._ended else self.run.taking.next_report
        self.run.taking.begin()
        watch = watched(self.run.heartbeat, self.run.spec, self.attempt.record)
        self._watching.enter_context(watch)

    def joining(self) -> JoiningStep:
        """Its part of the next joint step."""
        run = self.run
        run.heartbeat.beat("data", run.step)
        seed = mixed(run.spec.seed * 1_000_003 + run.world.rank, run.step)
        batches = run.taking.next_batches()
        return JoiningStep(run.train_step, run.adapter, batches, seed, self.own_state)

    def took(self, result: StepResult, seconds: float) -> None:
        """A joint step is done."""
        run = self.run
        with self.own_state():
            run.taking.took(result, seconds)
            if not self.is_due:
                self.attempt.checkpoints.after_step(run)

    @property
    def evaluates(self) -> bool:
        """Whether its report takes an evaluation; what has ended before says it again."""
        return not self._ended

    def report(self, scored: ScoredRows | None) -> Metrics:
        """Evaluate, with what was `scored` before, and write down; "done" says whether it was the
        last one."""
        run = self.run
        with self.own_state():
            metrics = run.report(scored) if self.evaluates else run.metrics
            told = self.attempt.tell(metrics, self._ended)
            if run.done:
                self.attempt.finish()
        self._until = None
        self._watching.close()
        return {**told, "done": run.done}

    def failed(self, error: Exception) -> None:
        """The run ends here, and its folder says why."""
        self.attempt.record.failed(reason(error))

    def close(self) -> None:
        """Take its adapter off the base."""
        self._watching.close()
        self.attempt.close()
