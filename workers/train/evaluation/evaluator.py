"""Validation by task: loss, the metric that each row names, and where the router sent the tokens.

Each worker measures its own rows; what the rows gave is then gathered, so that any number of
workers gives the same figures. Tensor suffixes: B rows, S positions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch

from workers.config.parallel import PassLimit
from workers.config.train import TrainSpec
from workers.data.batches import collate
from workers.data.example import Example
from workers.data.rows import Row
from workers.data.text_metrics import CHOICE_METRICS, likeliest, score, score_choices
from workers.injection.adapter import Adapter
from workers.injection.askers import Askers
from workers.injection.sharded import is_sharded
from workers.parallel.world import World
from workers.run.record import Metrics
from workers.run.samples import SampledAnswer, sample, sample_rows
from workers.train.evaluation.generate import Answers, batched, padded
from workers.train.evaluation.results import ExpertCounts, Measured, RowResult, summarise
from workers.train.evaluation.sample import SAMPLED, cached_prefix, drawn
from workers.train.forward import recorded, row_losses
from workers.train.inputs import Inputs
from workers.train.out_of_memory import FittingPasses, cannot_repeat, is_out_of_memory


class ScoredRows(NamedTuple):
    """What the rows of this worker gave with one adapter."""

    losses: list[tuple[float, float]]
    """Loss sum and what it counts of each."""
    counts: ExpertCounts
    written: Mapping[int, list[int]] = MappingProxyType({})
    """Tokens of answers that were written at the same time, by row."""


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
    fitting: FittingPasses | None = None
    """Says how many rows go at once; without it the specification does, at first."""

    def __call__(self) -> Metrics:
        """The metrics of `measure`."""
        return self.measure().metrics

    @torch.no_grad()
    def measure(self, *, last: bool = False, scored: ScoredRows | None = None) -> Measured:
        """`{"loss", "score", "tasks": {task: {"metric", "value", "loss", "rows"}}, "routing":
        {layer: {"load": [share of each expert], "entropy": 0 … 1}}}`; `score` (the mean of the
        tasks' values) and `value` only with `evaluation.generate`. Without it, sample rows are
        answered in the `last` evaluation alone. `scored` is there where it has been found with
        other adapters' (workers.train.evaluation.together)."""
        mine = self.mine
        losses, counts, written = scored or self._scored()
        shown, generates = self._shown(last), self.spec.evaluation.generate
        answers = self._answers(self._asked(shown), written) if generates or shown else {}
        results = [
            RowResult(
                index,
                loss,
                tokens,
                answers[index].score if generates else None,
                counts.rows.get(at, {}),
                answers[index] if index in shown else None,
            )
            for at, (index, (loss, tokens)) in enumerate(zip(mine, losses, strict=True))
        ]
        everything, whole = [], ExpertCounts()
        for part, layers in self.world.gather((results, counts.layers)):
            everything += part
            for layer, count_E in layers.items():
                whole.add(layer, count_E)
        routing = {"routing": whole.summary()} if whole.layers else {}
        metrics = summarise(self.inputs.validation, everything) | routing
        everything.sort(key=lambda result: result.index)
        samples = [
            sample(self.inputs.validation[result.index], result.answer)
            for result in everything
            if result.answer
        ]
        return Measured(metrics, everything, counts.prefix, samples)

    @property
    def mine(self) -> Sequence[int]:
        """The rows of this worker."""
        return self.world.share(range(len(self.inputs.validation)))

    def to_write(self, *, last: bool) -> list[int]:
        """Rows of this worker whose answers are written in this evaluation."""
        rows = self.inputs.validation
        asked = self._asked(self._shown(last))
        return [index for index in asked if rows[index].metric not in CHOICE_METRICS]

    def _asked(self, shown: frozenset[int]) -> Sequence[int]:
        """Rows that are answered; of those that nobody scores only what people are `shown`."""
        if self.spec.evaluation.generate:
            return self.mine
        return [index for index in self.mine if index in shown]

    def no_counts(self) -> ExpertCounts:
        """Of no row so far."""
        sampled = drawn(len(self.inputs.validation), self.kept_rows)
        kept = frozenset(at for at, index in enumerate(self.mine) if index in sampled)
        return ExpertCounts(kept=kept, prefix=cached_prefix(self.inputs.validation_examples))

    def _scored(self) -> ScoredRows:
        counts = self.no_counts()
        examples = [self.inputs.validation_examples[index] for index in self.mine]
        return ScoredRows(self._losses(examples, counts), counts)

    def _shown(self, last: bool) -> frozenset[int]:
        """Rows whose answers people are shown; the same for every worker. Of rows that nothing else
        answers, those for whose answers the model has room."""
        shown = sample_rows(self.inputs.validation, self.spec.evaluation.samples)
        if self.spec.evaluation.generate:
            return shown
        config = self.inputs.base.model.config.get_text_config()
        room = getattr(config, "max_position_embeddings", None) or math.inf
        longest = room - self.spec.evaluation.max_new_tokens
        examples = self.inputs.validation_examples
        return frozenset(i for i in shown if last and examples[i].spans[-1].start <= longest)

    def _losses(
        self, examples: Sequence[Example], counts: ExpertCounts | None = None
    ) -> list[tuple[float, float]]:
        """Loss sum and what it counts of each example; adds to the experts' counts."""
        results: list[tuple[float, float]] = [(0.0, 0)] * len(examples)

        def measure(indices: Sequence[int]) -> None:
            rows = [examples[i] for i in indices] or self.inputs.validation_examples[:1]
            batch = collate(rows, self.inputs.pad_token_id)
            adapter = self.adapter if counts else None
            with recorded(adapter, self.inputs.base, batch, rank_space=False) as records:
                sums = row_losses(self.inputs.base, batch)
            if counts and indices:
                counts.count(records, batch.attention_mask_BS, indices)
            for index, value in zip(indices, sums, strict=bool(indices)):
                results[index] = value

        self.in_passes([len(example) for example in examples], measure)
        return results

    def _answers(
        self, indices: Sequence[int], given: Mapping[int, list[int]]
    ) -> dict[int, SampledAnswer]:
        """The answers to validation rows, scored by each row's own metric; some may be `given`."""
        rows = self.inputs.validation
        chosen = [index for index in indices if rows[index].metric in CHOICE_METRICS]
        written = [index for index in indices if rows[index].metric not in CHOICE_METRICS]
        answers = dict(zip(chosen, self._choose([rows[index] for index in chosen]), strict=True))
        for index, text in zip(written, self._write(written, given), strict=True):
            row = rows[index]
            answers[index] = SampledAnswer(text, score(row.metric, row.scored(text), row))
        return answers

    def _choose(self, rows: Sequence[Row]) -> list[SampledAnswer]:
        """Answers to rows with choices; the choices of all rows share batches."""
        choices = [choice for row in rows for choice in self.inputs.encoder.choices(row)]
        losses = iter(self._losses(choices))
        likelihoods = [[-next(losses)[0] for _ in row.choices] for row in rows]
        return [
            SampledAnswer(
                row.choices[likeliest(row.metric, values, row)],
                score_choices(row.metric, values, row),
            )
            for row, values in zip(rows, likelihoods, strict=True)
        ]

    def _write(self, indices: Sequence[int], given: Mapping[int, list[int]]) -> list[str]:
        """Greedy answers to the rows' prompts."""
        tokenizer = self.inputs.base.tokenizer
        left = [index for index in indices if index not in given]
        prompts = self.prompts(left)
        # Continuous batches where each worker may take as many steps as it needs.
        answers = None if self._together else self.batched(prompts)
        answers = self._padded(prompts, self._ends) if answers is None else answers
        written = {**given, **dict(zip(left, answers, strict=True))}
        return [
            str(tokenizer.decode(written[index], skip_special_tokens=True)).strip()
            for index in indices
        ]

    @property
    def _ends(self) -> list[int]:
        """Tokens that end an answer."""
        found = {*self.inputs.encoder.stops, self.inputs.base.tokenizer.eos_token_id}
        return sorted(found - {None})

    def prompts(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """Of these rows, as tokens."""
        return [self.inputs.validation_examples[index].prompt for index in indices]

    def batched(
        self, prompts: Sequence[Sequence[int]], askers: Askers | None = None
    ) -> Answers | None:
        """Greedy answers in continuous batches, by several adapters where there are `askers`. None
        where the model cannot be batched so, or where a padded batch holds all prompts and is
        quicker."""
        found: Answers | None = []
        model, longest = self.inputs.base.model, self.spec.evaluation.max_new_tokens

        def write(at_once: Sequence[int]) -> None:
            nonlocal found
            rows = len(at_once)
            found = batched(model, prompts, longest, self._ends, rows, self.moving, askers)

        fitting = self.fitting or FittingPasses(self.spec)
        most = max(map(len, prompts), default=0) + longest
        while prompts:
            rows = fitting.evaluation.held(len(prompts), most)
            if rows == len(prompts) and askers is None:
                return None
            if fitting.evaluate(write, range(rows), most):
                break
        return found

    def _padded(self, prompts: Sequence[Sequence[int]], ends: Sequence[int]) -> Answers:
        answers: Answers = [[] for _ in prompts]
        model, longest = self.inputs.base.model, self.spec.evaluation.max_new_tokens
        pad, together = self.inputs.pad_token_id, self._together

        def write(group: Sequence[int]) -> None:
            some = [prompts[i] for i in group] or [self.inputs.validation_examples[0].prompt]
            written = padded(model, some, longest, ends, pad=pad, together=together)
            for index, ids in zip(group, written, strict=bool(group)):
                answers[index] = ids

        self.in_passes([len(prompt) + longest for prompt in prompts], write)
        return answers

    def in_passes(self, lengths: Sequence[int], work: Callable[[Sequence[int]], None]) -> None:
        """Do `work` for all rows, those of like lengths at once, the longest first: too many fail
        at once."""
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        fitting = self.fitting or FittingPasses(self.spec)
        if self._together:
            self._all_together(order, lengths, fitting.evaluation, work)
            return
        while order:
            self.moving()
            longest = lengths[order[0]]
            some = order[: fitting.evaluation.held(len(order), longest)]
            if fitting.evaluate(work, some, longest):
                order = order[len(some) :]

    def _all_together(
        self,
        order: Sequence[int],
        lengths: Sequence[int],
        limit: PassLimit,
        work: Callable[[Sequence[int]], None],
    ) -> None:
        """Workers who must run the model together all make as many passes, the last ones perhaps
        empty. None can be tried again."""
        passes: list[Sequence[int]] = []
        while order:
            held = limit.held(len(order), lengths[order[0]])
            passes.append(order[:held])
            order = order[held:]
        for number in range(max(self.world.gather(len(passes)))):
            self.moving()
            rows = passes[number] if number < len(passes) else []
            try:
                work(rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise cannot_repeat(
                    self.spec, "evaluation.batch_size", f"{len(rows)} rows"
                ) from None

    @property
    def _together(self) -> bool:
        return self.world.size > 1 and is_sharded(self.inputs.base.model)
