"""Which experts the rows of each task go to."""

import math
from pathlib import Path
from typing import Any

from workers.adapter import files
from workers.config.base import InputError
from workers.config.metrics import expert_load
from workers.config.train import TrainSpec
from workers.parallel.world import World
from workers.run.record import Metrics
from workers.train.evaluation.evaluator import Evaluation
from workers.train.evaluation.results import Measured
from workers.train.inputs import Inputs

TaskCounts = dict[str, dict[str, list[int]]]
"""Slots that went to each expert, by task and layer."""


def count_by_task(spec: TrainSpec, folder: Path) -> TaskCounts:
    """Of the validation rows that `spec` names, through the adapter in `folder`. Raises InputError
    for an adapter that does not fit, or that has no router."""
    inputs = Inputs.load(spec)
    adapter = files.load_into(inputs.base.model, folder)
    inputs.base.model.eval()
    rows = len(inputs.validation)
    measured = Evaluation(inputs, adapter, spec, World(), kept_rows=rows).measure()
    counts: TaskCounts = {}
    for row in measured.rows:
        layers = counts.setdefault(inputs.validation[row.index].task, {})
        for layer, sent in row.sent.items():
            sums = layers.get(layer, [0] * len(sent))
            layers[layer] = [old + new for old, new in zip(sums, sent, strict=True)]
    if not any(counts.values()):
        raise InputError(f"{folder}: has one expert, and so no router")
    return counts


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
        "measured_with": spec.with_model(inputs.spec.model).model_dump(mode="json"),
        "data_digest": inputs.data_digest,
        "metrics": metrics,
        "expert_load": expert_load(metrics),
        "routing_sample": sample and sample.model_dump(mode="json"),
    }


def _measured(inputs: Inputs, spec: TrainSpec, folder: Path | None) -> Measured:
    adapter = files.load_into(inputs.base.model, folder) if folder else None
    inputs.base.model.eval()
    return Evaluation(inputs, adapter, spec, World()).measure()
