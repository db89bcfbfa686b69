"""From what each validation row gave to the figures of a report.

Tensor suffixes: B rows, S positions, T = B * S tokens, E experts, K slots.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from workers.adapter.routing_sample import RoutingSample
from workers.data.rows import Row
from workers.injection.adapter import LayerRecord
from workers.run.record import Metrics
from workers.run.samples import Sample, SampledAnswer


@dataclass(frozen=True)
class RowResult:
    """What one validation row gave."""

    index: int
    """Place of the row among all validation rows."""
    loss_sum: float
    """Negative log-likelihood, summed over the target's tokens."""
    tokens: float
    """Tokens of the target, or the sum of their weights."""
    score: float | None
    """By the row's own metric, 0 to 1; None if rows are not scored."""
    sent: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Slots that went to each expert, by place: of the tokens that a server would route if this
    row were asked of it, and only of rows that are kept for a sample."""
    answer: SampledAnswer | None = None
    """Of a row that people are shown."""


class Measured(NamedTuple):
    """What an evaluation gave."""

    metrics: Metrics
    rows: list[RowResult]
    """Of all workers, in the order of the validation rows."""
    prefix: int
    """Tokens at the beginning of every row that `RowResult.sent` leaves out."""
    samples: list[Sample]
    """A few rows with what was answered to them."""

    @property
    def routing_sample(self) -> RoutingSample | None:
        """How single rows were routed, for a manifest."""
        return RoutingSample.of([row.sent for row in self.rows if row.sent], self.prefix)


@dataclass
class ExpertCounts:
    """How many real tokens went to each expert, by layer; and those of single rows."""

    layers: dict[str, Tensor] = field(default_factory=dict)
    kept: Collection[int] = ()
    """Rows to keep by themselves."""
    prefix: int = 0
    """Tokens that a row's own counts leave out at its beginning, and one at its end."""
    rows: dict[int, dict[str, list[int]]] = field(default_factory=lambda: defaultdict(dict))
    """Counts of the rows to keep, by layer."""

    def count(
        self, records: Iterable[LayerRecord], mask_BS: Tensor, rows: Sequence[int] = ()
    ) -> None:
        """Add what a forward pass did with the tokens in `mask_BS`, of these rows."""
        # A server keeps what all prompts begin with in its cache, and never reads the last token.
        asked_BS = functional.pad(mask_BS[:, 1:], (0, 1)).bool()
        asked_BS[:, : self.prefix] = False
        for record in records:
            self.add(record.layer, counted(record, mask_BS.bool()).sum(0))
            if self.kept:
                count_BE = counted(record, asked_BS).tolist()
                for row, count_E in zip(rows, count_BE, strict=True):
                    if row in self.kept:
                        self.rows[row][record.layer] = count_E

    def add(self, layer: str, count_E: Tensor) -> None:
        """Add to a layer's counts."""
        self.layers[layer] = self.layers[layer] + count_E if layer in self.layers else count_E

    def summary(self) -> Metrics:
        """By layer, each expert's share (`load`), and its entropy over log E (`entropy`): 1 is
        even, 0 is one expert for all."""
        return {layer: _load(count_E.double()) for layer, count_E in self.layers.items()}


def counted(record: LayerRecord, mask_BS: Tensor) -> Tensor:
    """Slots that went to each expert, [B, E] on the CPU, of the tokens in `mask_BS`."""
    num_experts, rows = record.routing.logits_TE.shape[-1], len(mask_BS)
    # Slots that are void have the number behind the last expert's.
    row_B = torch.arange(rows) * (num_experts + 1)
    place_TK = record.routing.expert_TK.cpu() + row_B.repeat_interleave(mask_BS.shape[1])[:, None]
    sent = torch.bincount(place_TK[mask_BS.flatten()].flatten(), minlength=rows * (num_experts + 1))
    return sent.view(rows, num_experts + 1)[:, :num_experts]


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
    """Mean over target tokens, by their weights."""
    return math.fsum(r.loss_sum for r in results) / sum(r.tokens for r in results)


def _load(count_E: Tensor) -> Mapping[str, object]:
    load_E = count_E / count_E.sum()
    entropy = float(torch.special.entr(load_E).sum()) / math.log(len(load_E))
    return {"load": load_E.tolist(), "entropy": entropy}
