"""How a run's rows become forward passes: padded, or packed."""

from collections.abc import Callable, Sequence

from workers.config.train import TrainSpec
from workers.data.batches import Batch, Batches, collate
from workers.data.example import Example
from workers.data.packing import batches_of, pack
from workers.data.streaming.batches import StreamedBatches
from workers.parallel.trial import MicroBatch
from workers.parallel.world import World
from workers.train.inputs import Inputs


def lay_out(spec: TrainSpec, passes: Sequence[Sequence[Example]], pad_token_id: int) -> list[Batch]:
    """The tensors of a step's forward passes."""
    lay = pack if spec.data.packing else collate
    return [lay(rows, pad_token_id) for rows in passes]


def run_batches(
    spec: TrainSpec, inputs: Inputs, world: World, moving: Callable[[], None]
) -> Batches | StreamedBatches:
    """The batches of one worker of a run. `moving` is called while a stream's rows are waited
    for."""
    worker = (world.rank, world.size)
    if spec.data.streaming:
        return StreamedBatches(spec, inputs.encoder, inputs.digests.listings, worker, moving)
    return batches_of(spec, inputs.train, inputs.parts, *worker)


def micro_batch(
    spec: TrainSpec, inputs: Inputs, workers: int, batches: Batches | StreamedBatches
) -> MicroBatch:
    """About what each of so many workers has at once: rows of like length go together, or packed
    ones fill a pass."""
    rows, tokens = spec.trained_at_once(workers), spec.pass_limit.tokens
    length = round(batches.mean_length)
    if tokens:
        rows = min(max(tokens // length, 1), spec.optimizer.batch_size // workers)
    return MicroBatch(rows, length, inputs.base.model.get_input_embeddings().weight.dtype)
