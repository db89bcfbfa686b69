"""Sequence packing against padding: training steps on the same rows, on a small random Llama.

Both take turns on one model and one adapter, in one process, on one thread; times are process CPU
time, so that neighbours on the machine count little. Each side takes an epoch of the rows in its
own order: padded, rows of like length share a step; packed, they do not.
`multitask` has the lengths of `../shared/data/multitask`, or, without it, lengths drawn like them;
`long` has rows of up to `--long` tokens.

    python tests/benchmarks/packing_rows.py [--json PATH|-]

With its own sizes it also writes its section of RESULTS.md.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, TextIO

import harness
import pyarrow.parquet as pq
import torch
from contrastive import Sizes as ModelSizes
from contrastive import random_base
from harness import milliseconds
from results import machine, write_section
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.adapter import AdapterSpec
from workers.config.data import DataSpec
from workers.config.model import ModelSpec
from workers.config.train import OptimizerSpec, TrainSpec
from workers.data.batches import Batch, Batches, collate
from workers.data.example import Example
from workers.data.packing import PackedBatches, pack
from workers.injection.inject import inject
from workers.parallel.update import Replicated
from workers.train.step import TrainStep

MULTITASK = Path(__file__).resolve().parents[3] / "shared" / "data" / "multitask" / "train.parquet"
BYTES = 4
"""Of a token, about."""
SIDES = ("padded", "packed")


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    rows: int = 320
    batch: int = 16
    long_rows: int = 32
    long_batch: int = 4
    long: int = 768
    layers: int = 3
    width: int = 384
    feed_forward: int = 1024
    vocabulary: int = 4096
    num_experts: int = 8
    rank: int = 8
    rounds: int = 1


class WatchedGradients(Replicated):
    """Keeps the gradients of a step."""

    def clip(self, max_norm: float) -> Tensor:
        self.gradients = {n: p.grad.clone() for n, p in self._named.items() if p.grad is not None}
        return super().clip(max_norm)


def multitask_lengths(count: int) -> list[int]:
    """Tokens of rows that are drawn from the set."""
    draw = Random(0)
    if not MULTITASK.is_file():
        return [round(min(max(draw.lognormvariate(4.2, 0.7), 12), 400)) for _ in range(count)]
    table = pq.read_table(MULTITASK, columns=["instruction", "input", "target"])
    rows = draw.sample(table.to_pylist(), count)
    return [max(sum(len(text.encode()) for text in row.values()) // BYTES, 4) for row in rows]


def examples(lengths: Sequence[int], vocabulary: int) -> list[Example]:
    """Rows of these lengths, whose last sixth is the target."""
    draw = Random(1)
    made = []
    for length in lengths:
        ids = draw.choices(range(4, vocabulary), k=length)
        cut = length - max(length // 6, 1)
        made.append(Example.of(ids[:cut], ids[cut:]))
    return made


class Contest:
    """The two sides' steps on one model."""

    def __init__(self, sizes: Sizes) -> None:
        shared = {name: getattr(sizes, name) for name in ("layers", "width", "feed_forward")}
        self.base = random_base(ModelSizes(**shared, vocabulary=sizes.vocabulary))
        shape = AdapterSpec(num_experts=sizes.num_experts, rank=sizes.rank, dropout=0.0)
        self.adapter = inject(self.base.model, shape)
        self.spec = TrainSpec(
            model=ModelSpec(path="random"),
            adapter=shape,
            data=DataSpec(train="-", validation="-"),
        )
        self.take = TrainStep(
            self.spec, self.base, self.adapter, Replicated(self.adapter, OptimizerSpec())
        )

    def turn(self, batches: Batches, step: int, rounds: int) -> float:
        """CPU milliseconds of a step, its tensors included."""

        def once() -> None:
            self.take([laid_out(batches)(rows, 0) for rows in batches.micro_batches(step)])

        return median(milliseconds(once) for _ in range(rounds))

    def worst_gradient(self, ways: Sequence[Sequence[Batch]], spec: TrainSpec) -> float:
        """The largest difference of a gradient over that tensor's largest number, of the same rows
        laid out in two ways."""
        found = []
        for parameter in self.adapter.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)  # B begins at zero
        for batches in ways:
            update = WatchedGradients(self.adapter, OptimizerSpec(lr=1e-30))  # moves nothing
            TrainStep(spec, self.base, self.adapter, update)(batches)
            found.append(update.gradients)
        return max(
            float((found[1][name] - one).abs().max() / one.abs().max().clamp(min=1e-6))
            for name, one in found[0].items()
        )


def laid_out(batches: Batches) -> Callable[[Sequence[Example], int], Batch]:
    """How a side makes tensors of rows."""
    return pack if isinstance(batches, PackedBatches) else collate


def padding(batches: Batches) -> float:
    """Share of an epoch's positions that hold no token."""
    real = held = 0
    for step in range(batches.steps_per_epoch):
        for rows in batches.micro_batches(step):
            mask_BS = laid_out(batches)(rows, 0).attention_mask_BS
            real, held = real + int(mask_BS.sum()), held + mask_BS.numel()
    return 1 - real / held


def compete(
    contest: Contest, rows: Sequence[Example], batch: int, rounds: int, table: TextIO, name: str
) -> tuple[float, dict[str, float]]:
    """Tokens a second, packed over padded, and the padding of each."""
    sides = dict(zip(SIDES, (Batches(rows, batch), PackedBatches(rows, batch)), strict=True))
    taken = dict.fromkeys(SIDES, 0.0)
    for side in SIDES:
        contest.turn(sides[side], 0, 1)
    for step in range(sides["padded"].steps_per_epoch):
        for side in SIDES if step % 2 else SIDES[::-1]:
            taken[side] += contest.turn(sides[side], step, rounds)
    tokens = sum(map(len, rows))
    for side in SIDES:
        print(f"{name}, {side}: {1000 * tokens / taken[side]:.0f} tokens a CPU second", file=table)
    return taken["padded"] / taken["packed"], {side: padding(sides[side]) for side in SIDES}


def described(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    over, share = result["tokens_per_s_over_padded"], result["padding_share"]
    sizes = "; ".join(f"{name} {size}" for name, size in result["sizes"].items())
    lines = [
        f"| {name} | {over[name]:.2f} | {share[name]['padded']:.1%} | {share[name]['packed']:.1%} |"
        for name in over
    ]
    return "\n".join(
        [
            f"{machine()}\n\n{sizes}\n",
            "An epoch of training steps on each side, in turns; CPU time of one thread, in",
            f"float32. Goal: at least {result['goal']}.\n",
            "| rows | tokens a CPU second, packed / padded | padding | padding, packed |",
            "| --- | ---: | ---: | ---: |",
            *lines,
            f"\nThe same rows give gradients that differ by at most {result['worst_gradient']:.1g}",
            "of the tensor's largest.",
        ]
    )


def main() -> None:
    arguments = harness.parser(__doc__, Sizes()).parse_args()
    table = harness.output(arguments.json)
    values = vars(arguments)
    sizes = replace(Sizes(), **{name: values[name] for name in asdict(Sizes())})
    torch.set_num_threads(1)
    contest, draw = Contest(sizes), Random(2)
    long = [draw.randrange(sizes.long // 4, sizes.long + 1) for _ in range(sizes.long_rows)]
    sets = {
        "multitask": (multitask_lengths(sizes.rows), sizes.batch),
        "long": (long, sizes.long_batch),
    }
    over: dict[str, float] = {}
    share: dict[str, dict[str, float]] = {}
    for name, (lengths, batch) in sets.items():
        rows = examples(lengths, sizes.vocabulary)
        over[name], share[name] = compete(contest, rows, batch, sizes.rounds, table, name)
    rows = examples(multitask_lengths(sizes.batch), sizes.vocabulary)
    result = {
        "tokens_per_s_over_padded": over,
        "padding_share": share,
        "worst_gradient": contest.worst_gradient(
            [[lay(rows, 0)] for lay in (collate, pack)], contest.spec
        ),
        "goal": 0.97,
        "sizes": asdict(sizes),
    }
    if sizes == Sizes():
        write_section("packing_rows.py", described(result))
    harness.finish(result, arguments.json)


if __name__ == "__main__":
    main()
