"""From what each validation row gave to the figures of a report.

Tensor suffixes: T tokens, E experts, K slots.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.data.rows import Row
from workers.inject import LayerRecord
from workers.train.record import Metrics


@dataclass(frozen=True)
class RowResult:
    """What one validation row gave."""

    index: int
    """Place of the row among all validation rows."""
    loss_sum: float
    """Negative log-likelihood, summed over the target's tokens."""
    tokens: int
    """Tokens of the target."""
    score: float | None
    """By the row's own metric, 0 to 1; None if rows are not scored."""


@dataclass
class ExpertCounts:
    """How many real tokens went to each expert, by layer."""

    layers: dict[str, Tensor] = field(default_factory=dict)

    def count(self, records: Iterable[LayerRecord]) -> None:
        """Add what a forward pass did."""
        for record in records:
            expert_TK, num_experts = record.routing.expert_TK, record.routing.logits_TE.shape[-1]
            real_TK = expert_TK if record.mask_T is None else expert_TK[record.mask_T]
            # Slots that are void have the number behind the last expert's.
            sent = torch.bincount(real_TK.flatten(), minlength=num_experts + 1)
            self.add(record.layer, sent[:num_experts].cpu())

    def add(self, layer: str, count_E: Tensor) -> None:
        """Add to a layer's counts."""
        self.layers[layer] = self.layers[layer] + count_E if layer in self.layers else count_E

    def summary(self) -> Metrics:
        """By layer, each expert's share (`load`), and its entropy over log E (`entropy`): 1 is
        even, 0 is one expert for all."""
        return {layer: _load(count_E.double()) for layer, count_E in self.layers.items()}


def summarise(rows: Sequence[Row], results: Iterable[RowResult]) -> Metrics:
    """Loss, tasks and, if rows were scored, the mean of the tasks' values."""
    ordered = sorted(results, key=lambda result: result.index)
    tasks: dict[str, list[RowResult]] = {}
    for result in ordered:
        tasks.setdefault(rows[result.index].task, []).append(result)
    table = {task: _task(rows, part) for task, part in sorted(tasks.items())}
    summary: Metrics = {"loss": _loss(ordered), "tasks": table}
    values = [entry["value"] for entry in table.values() if "value" in entry]
    if values:
        summary["score"] = math.fsum(values) / len(values)
    return summary


def _task(rows: Sequence[Row], results: Sequence[RowResult]) -> Metrics:
    metrics = sorted({rows[result.index].metric for result in results})
    entry: Metrics = {
        "metric": ", ".join(metrics),
        "loss": _loss(results),
        "rows": len(results),
    }
    scores = [result.score for result in results if result.score is not None]
    if scores:
        entry["value"] = math.fsum(scores) / len(scores)
    return entry


def _loss(results: Sequence[RowResult]) -> float:
    """Mean over target tokens."""
    return math.fsum(r.loss_sum for r in results) / sum(r.tokens for r in results)


def _load(count_E: Tensor) -> Mapping[str, object]:
    load_E = count_E / count_E.sum()
    entropy = float(torch.special.entr(load_E).sum()) / math.log(len(load_E))
    return {"load": load_E.tolist(), "entropy": entropy}
