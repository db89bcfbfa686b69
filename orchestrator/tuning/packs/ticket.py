"""A trial as Ray Tune sees it while a pack trains it: an actor that asks for reports and waits.

Its process loads no torch, so a search and ASHA need not know that trials share a base.
"""

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

import ray
from ray import tune
from ray.tune import Trainable

from orchestrator.config.job import JobSpec
from orchestrator.tuning.trainer import trial_task
from workers.run.record import Metrics
from workers.train.packed.work import Outcome
from workers.train.task import RunTask


class Ticket(Trainable):  # type: ignore[misc]
    """Trials, one after another. A subclass, which Tune is given, says what a trial's configuration
    means, and which broker has its slot."""

    broker: ClassVar[str]
    """Name of the broker's actor."""

    @classmethod
    def task(cls, name: str, config: Mapping[str, Any]) -> RunTask:
        """The run of a trial, from the trial's name and configuration."""
        raise NotImplementedError

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial. What is wrong with it comes out with its first step, which fails
        the trial alone."""
        self._task: RunTask | None = None
        self._asked: Any = None
        self._take(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Take another trial."""
        self.cleanup()
        self._take(config)
        return True

    def step(self) -> Metrics:
        """The pack's next report; raises what ended the run."""
        self._task = self._task or self.task(self.trial_name, self._config)
        self._asked = self._asked or ray.get_actor(self.broker)
        outcome: Outcome = ray.get(self._asked.ask.remote(self._attempt, self._task))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cleanup(self) -> None:
        """Give the slot back."""
        if self._task and self._asked:
            self._asked.leave.remote(self._attempt, self._task.name)
        self._task = None

    def _take(self, config: dict[str, Any]) -> None:
        self._config = config
        self._attempt = uuid.uuid4().hex


def ticket_trainable(job: JobSpec, name: str) -> Any:
    """What Ray Tune runs for each trial of the job, given the name of its broker's actor."""

    class TrialTicket(Ticket):
        """One trial of the job."""

        broker = name

        @classmethod
        def task(cls, name: str, config: Mapping[str, Any]) -> RunTask:
            """The trial's run."""
            return trial_task(job, name, config)

    # Tune wants a resource of every trial: a byte of memory is one that all nodes have to give.
    return tune.with_resources(TrialTicket, tune.PlacementGroupFactory([{"memory": 1}]))
