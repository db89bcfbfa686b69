"""What a training step really takes, by the allocator's own record."""

from dataclasses import dataclass
from random import Random

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
    moments = [one for state in update.optimizer.state.values() for one in state.values()]
    held = sum(one.nbytes for one in (*base.model.parameters(), *moments))
    peak = peak_bytes(lambda: step(batches))
    adapter.remove()
    return Measured(held + peak, estimate(spec, largest))


def _batch(spec: TrainSpec, largest: LargestPass, base: Base, seed: int) -> Batch:
    draw, vocabulary = Random(seed), base.model.config.get_text_config().vocab_size
    spans = (Span(largest.length - largest.scored, largest.length, 1),)
    rows = [
        Example(tuple(draw.randrange(4, vocabulary) for _ in range(largest.length)), spans)
        for _ in range(largest.rows)
    ]
    (batch,) = lay_out(spec, [rows], 0)
    return batch
