"""A trial as Ray Tune sees it while a pack trains it: an actor that asks for reports and waits.

So a search and ASHA need not know that trials share a base. As each trial has a process of its own
for that, it loads next to nothing: what a configuration means, the broker knows.
"""

import uuid
from typing import Any, ClassVar

import ray
from ray import tune
from ray.tune import Trainable


class Ticket(Trainable):  # type: ignore[misc]
    """Trials, one after another. A subclass, which Tune is given, says which broker has slots."""

    broker: ClassVar[str]
    """Name of the broker's actor."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial. What is wrong with it comes out with its first step, which fails
        the trial alone."""
        self._asked: Any = None
        self._name: str | None = None
        """The trial's, once a report was asked for."""
        self._take(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Take another trial."""
        self.cleanup()
        self._take(config)
        return True

    def step(self) -> dict[str, Any]:
        """The pack's next report; raises what ended the run."""
        self._asked = self._asked or ray.get_actor(self.broker)
        self._name = self.trial_name
        ask = self._asked.next_report.remote(self._attempt, self._name, self._config)
        outcome: dict[str, Any] | Exception = ray.get(ask)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cleanup(self) -> None:
        """Give the slot back."""
        if self._name:
            self._asked.leave.remote(self._attempt, self._name)
        self._name = None

    def _take(self, config: dict[str, Any]) -> None:
        self._config = config
        self._attempt = uuid.uuid4().hex


def ticket_trainable(name: str) -> Any:
    """What Ray Tune runs for each trial, given the name of its study's broker."""

    class TrialTicket(Ticket):
        """One trial of the study."""

        broker = name

    # Tune wants a resource of every trial: a byte of memory is one that all nodes have to give.
    return tune.with_resources(TrialTicket, tune.PlacementGroupFactory([{"memory": 1}]))
