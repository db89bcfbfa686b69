"""What the contrastive loss costs: training steps of a small random Llama with and without it.

Both kinds of step take turns on one model and one adapter, in one process, on one thread; times are
process CPU time, so that neighbours on the machine count little. The share is the median over
rounds of what the loss adds, over the step with it. Memory is the highest sum of live tensors that
PyTorch's profiler sees in one step, at T tokens and at four times as many.

    python tests/benchmarks/contrastive.py [--json PATH|-]

Shapes: T tokens, B rows, S tokens of a row, E experts, K top-k, R rank.
"""

import statistics
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import harness
import torch
from harness import peak_bytes
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.adapter import AdapterSpec
from workers.config.data import DataSpec
from workers.config.losses import LossSpec
from workers.config.model import ModelSpec
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch
from workers.injection.inject import inject
from workers.losses.cross_entropy import IGNORED
from workers.models.base import Base
from workers.parallel.update import Replicated
from workers.train.step import TrainStep

WEIGHTS = {"without": 0.0, "with": 0.01}


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    rows: int = 8
    length: int = 128
    layers: int = 4
    width: int = 576
    feed_forward: int = 1536
    vocabulary: int = 8192
    num_experts: int = 8
    top_k: int = 2
    rank: int = 8
    anchors: int = LossSpec().contrastive_anchors
    rounds: int = 15


def random_base(sizes: Sizes) -> Base:
    """A Llama of random weights, with heads of 64 as SmolLM2's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=max(sizes.width // 64, 1),
        num_key_value_heads=max(sizes.width // 192, 1),
        vocab_size=sizes.vocabulary,
        max_position_embeddings=4 * sizes.length,
    )
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    return Base(LlamaForCausalLM(config).train(), tokenizer, torch.device("cpu"))


def training_steps(sizes: Sizes) -> dict[str, TrainStep]:
    """A whole optimizer step without and with the loss, on the same model and adapter."""
    base = random_base(sizes)
    shape = AdapterSpec(num_experts=sizes.num_experts, top_k=sizes.top_k, rank=sizes.rank)
    adapter = inject(base.model, shape)
    nowhere = {"model": ModelSpec(path="random"), "data": DataSpec(train="-", validation="-")}
    return {
        name: TrainStep(
            TrainSpec(
                **nowhere,
                adapter=shape,
                loss=LossSpec(contrastive_weight=weight, contrastive_anchors=sizes.anchors),
            ),
            base,
            adapter,
            Replicated(adapter, OptimizerSpec()),
        )
        for name, weight in WEIGHTS.items()
    }


def random_batch(sizes: Sizes, length: int) -> Batch:
    """Rows without padding, whose last quarter is the target."""
    ids_BS = torch.randint(sizes.vocabulary, (sizes.rows, length))
    labels_BS = ids_BS.clone()
    labels_BS[:, : -(length // 4)] = IGNORED
    return Batch(ids_BS, torch.ones_like(ids_BS), labels_BS)


def measure_time(steps: dict[str, TrainStep], batch: Batch, rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of both kinds of step, and of what the loss adds in a round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            start = time.process_time()
            step([batch])
            times[name].append(1000 * (time.process_time() - start))
    times = {name: taken[2:] for name, taken in times.items()}
    pairs = zip(times["with"], times["without"], strict=True)
    added = statistics.median(with_it - without for with_it, without in pairs)
    return {name: statistics.median(taken) for name, taken in times.items()} | {"added": added}


def run(sizes: Sizes, table: TextIO) -> dict[str, object]:
    """Share of the loss in a step, and the peak memory that it adds, keyed by T."""
    steps = training_steps(sizes)
    taken = measure_time(steps, random_batch(sizes, sizes.length), sizes.rounds)
    share = taken["added"] / taken["with"]
    print(*(f"{name} {ms:.1f} ms" for name, ms in taken.items()), sep="; ", file=table)
    print(f"share of the step: {share:.1%}", file=table)
    difference: dict[str, float] = {}
    for length in (sizes.length, 4 * sizes.length):
        batch, tokens = random_batch(sizes, length), sizes.rows * length
        peaks = {name: peak_bytes(partial(step, [batch])) / 2**20 for name, step in steps.items()}
        difference[str(tokens)] = round(peaks["with"] - peaks["without"], 2)
        print(f"T={tokens}:", *(f"{name} {mib:.1f} MiB" for name, mib in peaks.items()), file=table)
    return {
        "contrastive_share": round(share, 4),
        "peak_memory_added_mib": difference,
        "sizes": asdict(sizes),
    }


def main() -> None:
    """Parse the arguments, print the figures, and end with one line of JSON."""
    options = vars(harness.parser(__doc__, Sizes()).parse_args())
    path = options.pop("json")
    torch.set_num_threads(1)
    harness.finish(run(Sizes(**options), harness.output(path)), path)


if __name__ == "__main__":
    main()
