"""A Tune actor whose configuration holds its run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.config.train import TrainSpec
from workers.run.record import RunPlan
from workers.train.ray_worker import TuneWorker
from workers.train.task import RunTask


class OneTrial(TuneWorker):
    """The run that its configuration holds."""

    @classmethod
    def task(cls, name: str, config: Mapping[str, Any]) -> RunTask:
        folder = Path(config["folder"])
        spec = TrainSpec.model_validate_json(config["spec"])
        return RunTask(spec, RunPlan(folder, "study", shared=folder.parents[1]))


def configured(spec: TrainSpec, folder: Path) -> dict[str, str]:
    """The configuration of a run."""
    return {"spec": spec.model_dump_json(), "folder": str(folder)}


def trial(spec: TrainSpec, folder: Path) -> OneTrial:
    """An actor with its first run."""
    return OneTrial(configured(spec, folder))
