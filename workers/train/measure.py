"""How long a step takes here: a few real ones, on rows of a usual length and on the longest."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workers.config.train import TrainSpec
from workers.data.epoch import in_steps, steps_of_run
from workers.data.example import Example
from workers.data.packing import batches_of
from workers.data.store.arrow import StoredExamples
from workers.data.store.token_store import EncodedSource
from workers.injection.inject import inject
from workers.models.base import load_base
from workers.models.packing import check_packing
from workers.parallel.update import Replicated
from workers.train.compiled import compiled_layers
from workers.train.layout import lay_out
from workers.train.step import TrainStep

STEPS = 3
"""Of each length, after one that does not count; the quickest counts."""


@dataclass(frozen=True)
class Timed:
    """A step of one worker."""

    positions: int
    """Tokens and padding of all its rows."""
    seconds: float


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps of one worker, alone on this machine."""

    usual: Timed
    """On rows of the median length."""
    longest: Timed
    device: str

    def seconds(self, positions: float) -> float:
        """Of a step with so many positions, in proportion between the two and beyond."""
        wider = self.longest.positions - self.usual.positions
        if wider <= 0 or self.longest.seconds <= self.usual.seconds:
            return self.usual.seconds * positions / self.usual.positions
        slope = (self.longest.seconds - self.usual.seconds) / wider
        least = self.usual.seconds * min(positions / self.usual.positions, 1.0)
        return max(self.usual.seconds + slope * (positions - self.usual.positions), least)

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    def __str__(self) -> str:
        """Half a sentence."""
        return (
            f"a step of one worker on its {self.device} takes {self.usual.seconds:.3g} s on rows "
            f"of a usual length, {self.longest.seconds:.3g} s on the longest"
        )


def measured_steps(spec: TrainSpec, train: EncodedSource) -> MeasuredSteps:
    """Load the base and take a few steps as one of the run's workers would. InputError."""
    base = load_base(spec.model)
    if spec.data.packing:
        check_packing(base.model)
    adapter = inject(base.model, spec.adapter, seed=spec.seed)
    steps = steps_of_run(spec.optimizer, lambda: train.counts.parts(spec.data))
    update = Replicated(adapter, spec.optimizer)
    step = TrainStep(in_steps(spec, steps), base, adapter, update)
    compiled_layers(spec, base, adapter)
    base.model.train()
    pad = int(base.tokenizer.pad_token_id)
    usual, longest = (_quickest(step, rows, spec, pad) for rows in _rows(train.examples, spec))
    return MeasuredSteps(usual, longest, base.device.type.upper())


def _rows(examples: StoredExamples, spec: TrainSpec) -> Iterator[list[Example]]:
    """A step's rows, as if all workers had the same: those around the median length, and the
    longest."""
    wanted = spec.optimizer.batch_size // spec.parallel.max_workers
    order = np.argsort(examples.lengths, kind="stable")
    middle = max((len(order) - wanted) // 2, 0)
    for some in (order[middle : middle + wanted], order[-wanted:]):
        yield [examples[int(row)] for row in np.resize(some, spec.optimizer.batch_size)]


def _quickest(
    step: TrainStep, rows: Sequence[Example], spec: TrainSpec, pad_token_id: int
) -> Timed:
    step_of_all = batches_of(spec, rows, (), rank=0, world=spec.parallel.max_workers)
    passes = step_of_all.micro_batches(0, spec.pass_limit)
    batches = lay_out(spec, passes, pad_token_id)
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        step(batches)  # its figures are read from the device: it is done then
        seconds.append(time.perf_counter() - started)
    positions = sum(batch.input_ids_BS.numel() for batch in batches)
    return Timed(positions, min(seconds[1:]))
