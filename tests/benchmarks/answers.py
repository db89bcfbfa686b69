"""Answers of an evaluation: continuous batches against padded ones, on a small random Llama.

Both take turns on one model with one adapter, in one process, on one thread; times are process CPU
time, so that neighbours on the machine count little. The prompts have the lengths of
`../shared/data/multitask`, or, without it, lengths drawn like them. In `mixed` a share of the
vocabulary ends an answer, so that answers have lengths of their own, as short as those
tasks' (10 tokens); in `full` none ends before the limit.

    python tests/benchmarks/answers.py [--json PATH|-]

With its own sizes it also writes its section of RESULTS.md.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import harness
import torch
from contrastive import Sizes as ModelSizes
from contrastive import random_base
from packing_rows import multitask_lengths
from results import machine, table, write_section
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.adapter import AdapterSpec
from workers.injection.inject import inject
from workers.train.evaluation.generate import Answers, batched, padded

PAD = 0


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    prompts: int = 96
    rows: int = 16
    longest: int = 48
    ending_share: float = 0.35
    layers: int = 4
    width: int = 384
    feed_forward: int = 1024
    vocabulary: int = 4096
    num_experts: int = 8
    rank: int = 8
    rounds: int = 1


class Contest:
    """The two sides on one model, and what both are asked."""

    def __init__(self, sizes: Sizes) -> None:
        shared = {name: getattr(sizes, name) for name in ("layers", "width", "feed_forward")}
        self.model = random_base(ModelSizes(**shared, vocabulary=sizes.vocabulary)).model.eval()
        adapter = inject(
            self.model, AdapterSpec(num_experts=sizes.num_experts, rank=sizes.rank, dropout=0.0)
        )
        for name, parameter in adapter.named_parameters():
            if name.endswith("lora_B"):
                nn.init.normal_(parameter, std=0.05)
        draw, self._sizes = Random(3), sizes
        words = range(4, sizes.vocabulary)
        lengths = multitask_lengths(sizes.prompts)
        self.prompts = sorted((draw.choices(words, k=n) for n in lengths), key=len, reverse=True)
        ends = sorted(draw.sample(words, round(sizes.ending_share * sizes.vocabulary)))
        self.kinds: dict[str, list[int]] = {"mixed": ends, "full": [sizes.vocabulary]}

    def turns(self) -> dict[str, Callable[[Sequence[int]], Answers]]:
        """Each side answers all prompts, up to one of these ends."""
        return {"padded": self.padded, "continuous": self.continuous}

    @torch.no_grad()
    def padded(self, ends: Sequence[int]) -> Answers:
        """As `Evaluation` does where workers go together: rows of like length share a batch."""
        sizes, found = self._sizes, Answers()
        for first in range(0, len(self.prompts), sizes.rows):
            some = self.prompts[first : first + sizes.rows]
            found += padded(self.model, some, sizes.longest, ends, pad=PAD)
        return found

    @torch.no_grad()
    def continuous(self, ends: Sequence[int]) -> Answers:
        """As it does else."""
        sizes = self._sizes
        found = batched(self.model, self.prompts, sizes.longest, ends, sizes.rows, lambda: None)
        assert found is not None
        return found


def compete(contest: Contest, kind: str, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of both sides in turns, and what they have answered."""
    taken: dict[str, list[float]] = {"padded": [], "continuous": []}
    answers: dict[str, Answers] = {}
    for at in range(rounds):
        for side, turn in [*contest.turns().items()][:: 1 if at % 2 else -1]:
            start = time.process_time()
            answers[side] = turn(contest.kinds[kind])
            taken[side].append(1000 * (time.process_time() - start))
    lengths = [len(ids) for ids in answers["padded"]]
    cpu = {side: median(each) for side, each in taken.items()}
    return {
        "cpu_ms": cpu,
        "speed_over_padded": cpu["padded"] / cpu["continuous"],
        "equal": sum(map(list.__eq__, answers["padded"], answers["continuous"])),
        "mean_tokens": sum(lengths) / len(lengths),
    }


def described(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    sizes = "; ".join(f"{name} {size}" for name, size in result["sizes"].items())
    rows = [
        [
            kind,
            f"{found['mean_tokens']:.1f}",
            f"{found['cpu_ms']['padded']:.0f}",
            f"{found['cpu_ms']['continuous']:.0f}",
            f"{found['speed_over_padded']:.2f}",
            f"{found['equal']} of {result['sizes']['prompts']}",
        ]
        for kind, found in result["kinds"].items()
    ]
    columns = ["answers", "tokens each", "padded CPU ms", "continuous CPU ms"]
    return "\n".join(
        [
            f"{machine()}\n\n{sizes}\n",
            "Greedy answers of an evaluation; CPU time of one thread, in float32. Goal: at",
            f"least {result['goal']} times as fast where answers differ in length, as tasks' do.\n",
            table([*columns, "padded / continuous", "same tokens"], rows),
        ]
    )


def main() -> None:
    arguments = harness.parser(__doc__, Sizes()).parse_args()
    shown, values = harness.output(arguments.json), vars(arguments)
    sizes = replace(Sizes(), **{name: values[name] for name in asdict(Sizes())})
    torch.set_num_threads(1)
    contest = Contest(sizes)
    found = {kind: compete(contest, kind, sizes.rounds) for kind in contest.kinds}
    for kind, one in found.items():
        print(f"{kind}, continuous over padded: {one['speed_over_padded']:.2f}", file=shown)
    result = {"kinds": found, "goal": 1.2, "sizes": asdict(sizes)}
    if sizes == Sizes():
        write_section("answers.py", described(result))
    harness.finish(result, arguments.json)


if __name__ == "__main__":
    main()
