"""The driver's side of packed trials."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from orchestrator.config.job import JobSpec

_END_SECONDS = 5.0
"""Packs end after the step that they are in; later they are made to."""


@contextmanager
def packed(job: JobSpec, size: int, at_once: int) -> Iterator[Any]:
    """A broker of packs with `size` slots, for `at_once` trials. Yields what Ray Tune runs for each
    trial; at the end of the block the packs are gone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from orchestrator.tuning.packs.starting import StudyBroker
    from orchestrator.tuning.packs.ticket import ticket_trainable

    name = f"packs-{uuid.uuid4().hex}"
    here = ray.get_runtime_context().get_node_id()
    where = NodeAffinitySchedulingStrategy(here, soft=True)  # it sees the study as we do
    options = {"name": name, "num_cpus": 0, "scheduling_strategy": where}
    broker = ray.remote(StudyBroker).options(**options).remote(job, size, at_once)
    broker.begin.remote()
    try:
        yield ticket_trainable(name)
    finally:
        with suppress(Exception):
            ray.get(broker.shut.remote(_END_SECONDS), timeout=2 * _END_SECONDS)
        ray.kill(broker)
