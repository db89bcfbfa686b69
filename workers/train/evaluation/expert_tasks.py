"""Which experts the rows of each task go to."""

from pathlib import Path

from workers.adapter import files
from workers.config.train import InputError, TrainSpec
from workers.parallel.world import World
from workers.train.evaluation.evaluator import Evaluation
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
