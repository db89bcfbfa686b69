"""Measures one adapter, or the bare base, as a run measures itself."""

import math
from pathlib import Path
from typing import Any

from workers.adapter import files
from workers.adapter.manifest import expert_load
from workers.config.train import InputError, TrainSpec
from workers.parallel.world import World
from workers.run.files import Metrics
from workers.train.evaluation.evaluator import Evaluation
from workers.train.evaluation.results import Measured
from workers.train.inputs import Inputs


def evaluate_folder(spec: TrainSpec, folder: Path | None) -> Metrics:
    """What `Evaluation` gives on `spec.data.validation`, for the adapter in `folder` or, where
    that is None, for the base alone. Raises InputError for an adapter that does not fit."""
    return _measured(Inputs.load(spec), spec, folder).metrics


def facts_of_folder(spec: TrainSpec, folder: Path | None) -> dict[str, Any]:
    """The same as a run keeps it in its adapter's manifest: fields of `Manifest` as plain values,
    with the base and the rows that it was measured on. InputError where it is not finite."""
    inputs = Inputs.load(spec)
    measured = _measured(inputs, spec, folder)
    metrics, sample = {"validation": measured.metrics}, measured.routing_sample
    if not math.isfinite(loss := measured.metrics["loss"]):
        raise InputError(f"{folder or spec.model.path}: its loss is {loss} on the validation rows")
    return {
        "base": inputs.base_record.model_dump(mode="json"),
        "data_digest": inputs.data_digest,
        "metrics": metrics,
        "expert_load": expert_load(metrics),
        "routing_sample": sample and sample.model_dump(mode="json"),
    }


def _measured(inputs: Inputs, spec: TrainSpec, folder: Path | None) -> Measured:
    adapter = files.load_into(inputs.base.model, folder) if folder else None
    inputs.base.model.eval()
    return Evaluation(inputs, adapter, spec, World()).measure()
