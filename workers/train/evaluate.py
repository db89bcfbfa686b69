"""Validation by task: loss, the metric that each row names, and where the router sent the tokens.

Each worker measures its own rows; the rows' results are then gathered, so that any number of
workers gives the same figures. Tensor suffixes: B rows, S positions, N the last positions,
T = B * S tokens, E experts, K top-k, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from workers.data.batches import IGNORED, Batch, collate, collate_prompts
from workers.data.encode import Example
from workers.data.rows import Row
from workers.inject import Adapter, LayerRecord
from workers.metrics import CHOICE_METRICS, score, score_choices
from workers.spec import EvaluationSpec
from workers.train.forward import scored_logits
from workers.train.inputs import Inputs
from workers.train.record import Metrics
from workers.train.world import World


@dataclass(frozen=True)
class RowResult:
    """What one validation row gave."""

    index: int
    """Place of the row among all validation rows."""
    loss_sum: float
    """Negative log-likelihood, summed over the target's tokens."""
    tokens: int
    score: float | None
    """By the row's own metric, 0 to 1; None if rows are not scored."""


@dataclass(frozen=True)
class Evaluation:
    """Measures an adapter on the validation rows. The model must be in eval mode."""

    inputs: Inputs
    adapter: Adapter | None
    """None where the bare base is measured: it has no routing."""
    spec: EvaluationSpec
    world: World

    @torch.no_grad()
    def __call__(self) -> Metrics:
        """`{"loss", "score", "tasks": {task: {"metric", "value", "loss", "rows"}}, "routing":
        {layer: {"load": [share of each expert], "entropy": 0 … 1}}}`; `score` (the mean of the
        tasks' values) and `value` only with `evaluation.generate`."""
        numbered = list(enumerate(self.inputs.validation))
        share = self.world.share(numbered)
        rows = [row for _, row in share]
        counts: dict[str, Tensor] = {}
        losses = self._losses([self.inputs.encoder.example(row) for row in rows], counts)
        scores = self._scores(rows) if self.spec.generate else [None] * len(rows)
        mine = [
            RowResult(index, loss, tokens, value)
            for (index, _), (loss, tokens), value in zip(share, losses, scores, strict=True)
        ]
        results = sorted(
            (result for part in self.world.gather(mine) for result in part),
            key=lambda result: result.index,
        )
        summary = summarise(self.inputs.validation, results)
        routing = {layer: _routing(self.world.add(count)) for layer, count in counts.items()}
        return summary | ({"routing": routing} if routing else {})

    def _losses(
        self, examples: Sequence[Example], counts: dict[str, Tensor] | None = None
    ) -> list[tuple[float, int]]:
        """Loss sum and token count of each example; adds to each layer's expert counts."""
        results: list[tuple[float, int]] = [(0.0, 0)] * len(examples)
        for indices, batch in self._batches(examples):
            if counts is None or self.adapter is None:
                sums = _row_losses(self.inputs.base.model, batch)
            else:
                with self.adapter.record(batch.attention_mask_BS, rank_space=False) as records:
                    sums = _row_losses(self.inputs.base.model, batch)
                for record in records:
                    count_E = _expert_counts(record)
                    counts[record.layer] = (
                        counts.get(record.layer, torch.zeros_like(count_E)) + count_E
                    )
            for index, value in zip(indices, sums, strict=True):
                results[index] = value
        return results

    def _batches(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], Batch]]:
        """Examples of like length together, the longest first: too large a batch fails at once."""
        order = sorted(range(len(examples)), key=lambda index: -len(examples[index]))
        pad = self.inputs.base.tokenizer.pad_token_id
        for start in range(0, len(order), self.spec.batch_size):
            indices = order[start : start + self.spec.batch_size]
            batch = collate([examples[index] for index in indices], pad)
            yield indices, batch.to(self.inputs.base.device)

    def _scores(self, rows: Sequence[Row]) -> list[float]:
        """Each row by its own metric."""
        chosen = [i for i, row in enumerate(rows) if row.metric in CHOICE_METRICS]
        written = [i for i, row in enumerate(rows) if row.metric not in CHOICE_METRICS]
        scores = dict(zip(chosen, self._choose([rows[i] for i in chosen]), strict=True))
        answers = self._write([rows[i] for i in written])
        for index, answer in zip(written, answers, strict=True):
            scores[index] = score(rows[index].metric, answer, rows[index])
        return [scores[index] for index in range(len(rows))]

    def _choose(self, rows: Sequence[Row]) -> list[float]:
        """Scores of rows with choices; the choices of all rows share batches."""
        examples = [self.inputs.encoder.choices(row) for row in rows]
        losses = iter(self._losses([choice for choices in examples for choice in choices]))
        return [
            score_choices(row.metric, [-next(losses)[0] for _ in row.choices], row) for row in rows
        ]

    def _write(self, rows: Sequence[Row]) -> list[str]:
        """Greedy answers to the rows' prompts."""
        tokenizer = self.inputs.base.tokenizer
        prompts = [self.inputs.encoder.example(row).prompt for row in rows]
        order = sorted(range(len(rows)), key=lambda index: -len(prompts[index]))
        answers = [""] * len(rows)
        for start in range(0, len(order), self.spec.batch_size):
            indices = order[start : start + self.spec.batch_size]
            ids_BS, mask_BS = collate_prompts([prompts[i] for i in indices], tokenizer.pad_token_id)
            written_BS = self._generate(ids_BS, mask_BS)[:, ids_BS.shape[1] :]
            texts = tokenizer.batch_decode(written_BS, skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text.strip()
        return answers

    def _generate(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        tokenizer, device = self.inputs.base.tokenizer, self.inputs.base.device
        ends = {self.inputs.encoder.end[0], tokenizer.eos_token_id} - {None}
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.spec.max_new_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
        generated: Tensor = self.inputs.base.model.generate(
            ids_BS.to(device), attention_mask=mask_BS.to(device), generation_config=config
        )
        return generated


def summarise(rows: Sequence[Row], results: Sequence[RowResult]) -> Metrics:
    """Loss, score and tasks of `Evaluation`'s result, from every row's own result."""
    tasks: dict[str, list[RowResult]] = {}
    for result in results:
        tasks.setdefault(rows[result.index].task, []).append(result)
    table = {task: _task(rows, part) for task, part in sorted(tasks.items())}
    summary: Metrics = {"loss": _loss(results), "tasks": table}
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


def _loss(results: Iterable[RowResult]) -> float:
    """Mean over target tokens."""
    results = list(results)
    return math.fsum(r.loss_sum for r in results) / sum(r.tokens for r in results)


def _row_losses(model: nn.Module, batch: Batch) -> list[tuple[float, int]]:
    """Sum of the negative log-likelihood, and number, of each row's target tokens."""
    logits_BNV, labels_BN = scored_logits(model, batch)
    next_BN = labels_BN[:, 1:]
    loss_BN = nn.functional.cross_entropy(
        logits_BNV[:, :-1].float().transpose(1, 2), next_BN, ignore_index=IGNORED, reduction="none"
    )
    count_B = (next_BN != IGNORED).sum(-1)
    return list(zip(loss_BN.double().sum(-1).tolist(), count_B.tolist(), strict=True))


def _expert_counts(record: LayerRecord) -> Tensor:
    """How many real tokens went to each expert."""
    expert_TK, num_experts = record.routing.expert_TK, record.routing.probs_TE.shape[-1]
    real_TK = expert_TK if record.mask_T is None else expert_TK[record.mask_T]
    return torch.bincount(real_TK.flatten(), minlength=num_experts).double()


def _routing(count_E: Tensor) -> Mapping[str, Any]:
    """Share of the routed tokens that each expert got, and its entropy over log E: 1 is even,
    0 is one expert for all."""
    load_E = count_E / count_E.sum()
    entropy = torch.special.entr(load_E).sum() / math.log(len(load_E))
    return {"load": load_E.tolist(), "entropy": float(entropy)}
