"""Validation by task: loss, the metric that each row names, and where the router sent the tokens.

Each worker measures its own rows; what the rows gave is then gathered, so that any number of
workers gives the same figures. Tensor suffixes: B rows, S positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from transformers import GenerationConfig

from workers.data.batches import collate, collate_prompts
from workers.data.encode import Example
from workers.inject import Adapter
from workers.losses import row_losses
from workers.metrics import CHOICE_METRICS, score, score_choices
from workers.parallel.whole import is_sharded
from workers.parallel.world import World
from workers.spec import TrainSpec
from workers.train.forward import recorded, scored_logits
from workers.train.inputs import Inputs
from workers.train.record import Metrics
from workers.train.results import ExpertCounts, Measured, RowResult, summarise
from workers.train.sampled import SAMPLED, cached_prefix, drawn


@dataclass(frozen=True)
class Evaluation:
    """Measures an adapter on the validation rows. The model must be in eval mode."""

    inputs: Inputs
    adapter: Adapter | None
    """None where the bare base is measured: it has no routing."""
    spec: TrainSpec
    world: World
    moving: Callable[[], None] = lambda: None
    """Called before each forward pass: an evaluation may take long, and workers differ."""
    kept_rows: int = SAMPLED
    """Rows, drawn from all of them, whose own routing is kept."""

    def __call__(self) -> Metrics:
        """The metrics of `measure`."""
        return self.measure().metrics

    @torch.no_grad()
    def measure(self) -> Measured:
        """`{"loss", "score", "tasks": {task: {"metric", "value", "loss", "rows"}}, "routing":
        {layer: {"load": [share of each expert], "entropy": 0 … 1}}}`; `score` (the mean of the
        tasks' values) and `value` only with `evaluation.generate`."""
        mine = self.world.share(range(len(self.inputs.validation)))
        sampled = drawn(len(self.inputs.validation), self.kept_rows)
        kept = frozenset(at for at, index in enumerate(mine) if index in sampled)
        counts = ExpertCounts(kept=kept, prefix=cached_prefix(self.inputs.validation_examples))
        losses = self._losses([self.inputs.validation_examples[i] for i in mine], counts)
        scores = self._scores(mine) if self.spec.evaluation.generate else [None] * len(mine)
        results = [
            RowResult(index, loss, tokens, value, counts.rows.get(at, {}))
            for at, (index, (loss, tokens), value) in enumerate(
                zip(mine, losses, scores, strict=True)
            )
        ]
        everything, whole = [], ExpertCounts()
        for part, layers in self.world.gather((results, counts.layers)):
            everything += part
            for layer, count_E in layers.items():
                whole.add(layer, count_E)
        routing = {"routing": whole.summary()} if whole.layers else {}
        metrics = summarise(self.inputs.validation, everything) | routing
        everything.sort(key=lambda result: result.index)
        return Measured(metrics, everything, counts.prefix)

    def _losses(
        self, examples: Sequence[Example], counts: ExpertCounts | None = None
    ) -> list[tuple[float, int]]:
        """Loss sum and token count of each example; adds to the experts' counts."""
        results: list[tuple[float, int]] = [(0.0, 0)] * len(examples)
        for indices in self._groups([len(example) for example in examples]):
            rows = [examples[i] for i in indices] or self.inputs.validation_examples[:1]
            batch = collate(rows, self.inputs.pad_token_id)
            adapter = self.adapter if counts else None
            with recorded(adapter, self.inputs.base, batch, rank_space=False) as records:
                sums = row_losses(*scored_logits(self.inputs.base, batch))
            if counts and indices:
                counts.count(records, batch.attention_mask_BS, indices)
            for index, value in zip(indices, sums, strict=bool(indices)):
                results[index] = value
        return results

    def _scores(self, indices: Sequence[int]) -> list[float]:
        """Each of the validation rows by its own metric."""
        metrics = {index: self.inputs.validation[index].metric for index in indices}
        chosen = [index for index in indices if metrics[index] in CHOICE_METRICS]
        written = [index for index in indices if metrics[index] not in CHOICE_METRICS]
        scores = dict(zip(chosen, self._choose(chosen), strict=True))
        for index, answer in zip(written, self._write(written), strict=True):
            scores[index] = score(metrics[index], answer, self.inputs.validation[index])
        return [scores[index] for index in indices]

    def _choose(self, indices: Sequence[int]) -> list[float]:
        """Scores of rows with choices; the choices of all rows share batches."""
        rows = [self.inputs.validation[index] for index in indices]
        choices = [choice for row in rows for choice in self.inputs.encoder.choices(row)]
        losses = iter(self._losses(choices))
        return [
            score_choices(row.metric, [-next(losses)[0] for _ in row.choices], row) for row in rows
        ]

    def _write(self, indices: Sequence[int]) -> list[str]:
        """Greedy answers to the rows' prompts."""
        prompts = [self.inputs.validation_examples[index].prompt for index in indices]
        answers = [""] * len(prompts)
        for group in self._groups([len(prompt) for prompt in prompts]):
            rows = [prompts[i] for i in group] or [self.inputs.validation_examples[0].prompt]
            texts = self._generate(*collate_prompts(rows, self.inputs.pad_token_id))
            for index, text in zip(group, texts, strict=bool(group)):
                answers[index] = text
        return answers

    def _generate(self, ids_BS: Tensor, mask_BS: Tensor) -> list[str]:
        tokenizer, device = self.inputs.base.tokenizer, self.inputs.base.device
        ends = {self.inputs.encoder.end[0], tokenizer.eos_token_id} - {None}
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.spec.evaluation.max_new_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=self.inputs.pad_token_id,
        )
        whole_BS = self.inputs.base.model.generate(
            ids_BS.to(device),
            attention_mask=mask_BS.to(device),
            generation_config=config,
            synced_gpus=self._together,
        )
        answers = []
        for ids in whole_BS[:, ids_BS.shape[1] :].tolist():
            length = next((at for at, token in enumerate(ids) if token in ends), len(ids))
            answers.append(tokenizer.decode(ids[:length], skip_special_tokens=True).strip())
        return answers

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Batches of like lengths, the longest first: too large a batch fails at once. Workers who
        must run the model together all have as many, the last ones perhaps empty."""
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        size = self.spec.evaluated_at_once
        count = ceil(len(order) / size)
        if self._together:
            count = max(self.world.gather(count))
        for first in range(0, count * size, size):
            self.moving()
            yield order[first : first + size]

    @property
    def _together(self) -> bool:
        return self.world.size > 1 and is_sharded(self.inputs.base.model)
