"""What a training step really takes, by the allocator's own record."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random

from torch import Tensor

from tests.benchmarks.harness import peak_bytes
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.data.batches import Batch
from workers.data.example import Example, Span
from workers.data.store.epoch_figures import LargestPass
from workers.injection.inject import inject
from workers.models.base import Base, load_base
from workers.models.memory import MemoryEstimate, estimate
from workers.parallel.update import Replicated
from workers.train.layout import lay_out
from workers.train.packed.joint_step import JoiningStep, JointStep
from workers.train.step import TrainStep


@dataclass(frozen=True)
class Measured:
    """Bytes of a worker, at the most of a step that is not the first."""

    taken: int
    estimated: MemoryEstimate

    @property
    def ratio(self) -> float:
        """Of the estimate to what was taken."""
        return self.estimated.total / self.taken


def measured(
    spec: TrainSpec, largest: LargestPass, base: Base | None = None, passes: int = 1
) -> Measured:
    """A step of so many passes of rows of like length."""
    spec = override(spec, {"optimizer.batch_size": largest.rows * passes}, "measured")
    base = base or load_base(spec.model)
    adapter = inject(base.model.train(), spec.adapter, seed=0)
    update = Replicated(adapter, spec.optimizer)
    step = TrainStep(spec, base, adapter, update)
    batches = [_batch(spec, largest, base, seed) for seed in range(passes)]
    step(batches)  # moments are there from now on
    held = sum(one.nbytes for one in (*base.model.parameters(), *_moments([update])))
    peak = peak_bytes(lambda: step(batches))
    adapter.remove()
    return Measured(held + peak, estimate(spec, largest))


def measured_pack(runs: Sequence[TrainSpec], largest: LargestPass) -> Measured:
    """A joint step of runs that have one pass of such rows each."""
    rows = {"optimizer.batch_size": largest.rows}
    runs = [override(run, rows, "measured") for run in runs]
    base = load_base(runs[0].model)
    base.model.train()
    adapters = [
        inject(base.model, run.adapter, slot=f"run {seed}", seed=seed)
        for seed, run in enumerate(runs)
    ]
    updates = [
        Replicated(adapter, run.optimizer) for run, adapter in zip(runs, adapters, strict=True)
    ]
    joining = [
        JoiningStep(
            TrainStep(run, base, adapter, update),
            adapter,
            [_batch(run, largest, base, seed)],
            seed,
            nullcontext,
        )
        for seed, (run, adapter, update) in enumerate(zip(runs, adapters, updates, strict=True))
    ]
    step = JointStep(base, 0, len(runs))
    step(joining)  # moments are there from now on
    held = sum(one.nbytes for one in (*base.model.parameters(), *_moments(updates)))
    peak = peak_bytes(lambda: step(joining))
    first, *beside = runs
    return Measured(held + peak, estimate(first, largest, beside=beside))


def _moments(updates: Sequence[Replicated]) -> Iterator[Tensor]:
    for update in updates:
        for state in update.optimizer.state.values():
            yield from state.values()


def _batch(spec: TrainSpec, largest: LargestPass, base: Base, seed: int) -> Batch:
    draw, vocabulary = Random(seed), base.model.config.get_text_config().vocab_size
    spans = (Span(largest.length - largest.scored, largest.length, 1),)
    rows = [
        Example(tuple(draw.randrange(4, vocabulary) for _ in range(largest.length)), spans)
        for _ in range(largest.rows)
    ]
    (batch,) = lay_out(spec, [rows], 0)
    return batch
