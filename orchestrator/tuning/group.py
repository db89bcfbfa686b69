"""Ray Train groups: several workers that train together."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.spec import SearchSpec
from workers.config.parallel import ParallelSpec, WorkerRange
from workers.config.train import TrainSpec

if TYPE_CHECKING:
    from ray.train import UserCallback
    from ray.train.torch import TorchTrainer

_AFTER_THE_WATCHDOG_S = 60
"""A collective fails by itself only after the watchdog could say who is missing."""


def train_group(
    work: Callable[[], None],
    spec: TrainSpec,
    folder: Path,
    search: SearchSpec,
    callbacks: "Iterable[UserCallback]" = (),
) -> "TorchTrainer":
    """A group whose workers all do `work`, on what `spec` and `search` give them. What Ray Train
    keeps lies in `folder`; the name there is stable, so a further start goes on with it."""
    from ray import train
    from ray.train.torch import TorchTrainer

    from orchestrator.tuning.failures import FailureNotes
    from workers.train.ray_process_group import ProcessGroupConfig

    on_gpu = search.gpus_per_worker > 0 and spec.model.device != "cpu"
    return TorchTrainer(
        work,
        torch_config=ProcessGroupConfig(
            backend="nccl" if on_gpu else "gloo",
            timeout_s=int(spec.parallel.hang_timeout_s) + _AFTER_THE_WATCHDOG_S,
        ),
        scaling_config=train.ScalingConfig(
            **_workers(spec.parallel),
            use_gpu=search.gpus_per_worker > 0,
            resources_per_worker={"CPU": search.cpus_per_worker, "GPU": search.gpus_per_worker},
        ),
        run_config=train.RunConfig(
            name="group",
            storage_path=str(folder),
            failure_config=train.FailureConfig(max_failures=search.retries),
            callbacks=[FailureNotes(folder), *callbacks],
        ),
    )


def _workers(spec: ParallelSpec) -> dict[str, Any]:
    """The part of Ray Train's ScalingConfig that is about numbers."""
    if isinstance(spec.workers, WorkerRange) and spec.is_elastic:
        return {
            "num_workers": (spec.min_workers, spec.max_workers),
            "elastic_resize_monitor_interval_s": spec.workers.check_every_s,
        }
    return {"num_workers": spec.max_workers}
