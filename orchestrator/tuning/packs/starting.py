"""A study's broker as a Ray actor, and the packs that it starts. Loads no torch."""

import asyncio
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray

from orchestrator.config.job import JobSpec
from orchestrator.tuning.failures import why
from orchestrator.tuning.packs.broker import Broker
from orchestrator.tuning.trainer import trial_task
from workers.train.packed.work import Outcome, told


class StudyBroker(Broker):
    """Starts packs as actors of its own: they end with it, as it does with the driver."""

    def __init__(self, job: JobSpec, size: int, at_once: int) -> None:
        """`size` slots a pack, for `at_once` trials."""
        self._job, self._slots, self._actors = job, size, dict[int, Any]()
        self._watches: set[asyncio.Task[None]] = set()
        super().__init__(size, at_once, self._launch)

    async def next_report(self, attempt: str, name: str, config: Mapping[str, Any]) -> Outcome:
        """Of a trial, by its name and configuration; see `ask`."""
        try:
            task = trial_task(self._job, name, config)
        except Exception as error:
            return told(error)
        return await self.ask(attempt, task)

    async def shut(self, seconds: float) -> None:
        """End all packs: by themselves in so many seconds, or by force."""
        await self.close()
        if self._watches:
            await asyncio.wait(self._watches, timeout=seconds)
        for actor in self._actors.values():
            ray.kill(actor)

    def _launch(self, number: int) -> None:
        search, parallel = self._job.search, self._job.train.parallel
        if parallel.max_workers == 1:
            each = {"num_cpus": search.cpus_per_worker, "num_gpus": search.gpus_per_worker}
            actor = ray.remote(PackActor).options(**each).remote()
        else:  # it only waits: the group's resources are Ray Train's to reserve
            actor = ray.remote(PackGroup).options(num_cpus=0).remote(self._job)
        self._actors[number] = actor
        me = ray.get_runtime_context().current_actor
        ended = actor.run.remote(me, number, self._slots)
        watch = asyncio.get_running_loop().create_task(self._watch(number, ended))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _watch(self, number: int, ended: Any) -> None:
        try:
            await ended
            reason = "it had ended already"
        except Exception as error:
            reason = why(error)
        ray.kill(self._actors.pop(number))  # its resources are free only then
        await self.lost(number, f"pack {number} is gone: {reason}")


class PackActor:
    """A pack of one worker."""

    def run(self, broker: Any, number: int, size: int) -> None:
        """Train until the broker says that it is over."""
        from workers.train.ray_pack import run_pack

        run_pack(broker, number, size)


class PackGroup:
    """A pack of several workers."""

    def __init__(self, job: JobSpec) -> None:
        self._job = job

    def run(self, broker: Any, number: int, size: int) -> None:
        """Train until the broker says that it is over."""
        from orchestrator.tuning.group import train_group
        from workers.train.ray_pack import run_pack

        folder = self._job.study_folder() / "tune" / "packs" / uuid.uuid4().hex
        # Tune tries the trials of a pack that is lost again, in another one.
        search = self._job.search.model_copy(update={"retries": 0})
        train_group(partial(run_pack, broker, number, size), self._job.train, folder, search).fit()
