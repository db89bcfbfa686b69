"""Measures one adapter, or the bare base: what a before-and-after table shows."""

from pathlib import Path

from workers.adapter import files
from workers.parallel.world import World
from workers.spec import TrainSpec
from workers.train.evaluate import Evaluation
from workers.train.inputs import Inputs
from workers.train.record import Metrics


def evaluate_folder(spec: TrainSpec, folder: Path | None) -> Metrics:
    """What `Evaluation` gives on `spec.data.validation`, for the adapter in `folder` or, where
    that is None, for the base alone. Raises InputError for an adapter that does not fit."""
    inputs = Inputs.load(spec)
    adapter = files.load_into(inputs.base.model, folder) if folder else None
    inputs.base.model.eval()
    return Evaluation(inputs, adapter, spec, World())()
