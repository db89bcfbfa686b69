"""Passes counted by their tokens against passes of as many rows as fit where these are longest.

Both train on the same steps of one model with one adapter, in turns, in one process, on one thread;
times are process CPU time. Most rows are short, one in `--one-long` has up to `--longest` tokens:
`micro_batch_size` must be so small that these fit, `micro_batch_tokens` need not.

    python tests/benchmarks/token_passes.py [--json PATH|-]

With its own sizes it also writes its section of RESULTS.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import harness
import torch
from packing_rows import Contest, examples
from packing_rows import Sizes as ModelSizes
from results import machine, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.config.losses import LossSpec
from workers.config.parallel import PassLimit
from workers.data.batches import Batches, collate
from workers.data.example import Example

SIDES = ("rows", "tokens")


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    rows: int = 384
    batch: int = 32
    longest: int = 512
    one_long: int = 24
    tokens: int = 1024
    layers: int = 3
    width: int = 384
    feed_forward: int = 1024
    vocabulary: int = 4096
    num_experts: int = 8
    rank: int = 8


def lengths(sizes: Sizes) -> list[int]:
    """Tokens of rows."""
    draw = Random(0)
    return [
        draw.randint(sizes.longest // 2, sizes.longest)
        if at % sizes.one_long == 0
        else draw.randint(8, max(sizes.longest // 8, 9))
        for at in range(sizes.rows)
    ]


@dataclass(frozen=True)
class Epoch:
    """What one way to count a pass gave."""

    passes: int
    tokens_of_a_pass: float
    padding: float
    milliseconds: float


def epochs(contest: Contest, batches: Batches, limits: dict[str, PassLimit]) -> dict[str, Epoch]:
    """Every step by either way, in turns."""
    taken = dict.fromkeys(SIDES, 0.0)
    made: dict[str, list[tuple[int, int]]] = {side: [] for side in SIDES}
    for step in range(-1, batches.steps_per_epoch):  # the first does not count
        for side in SIDES if step % 2 else SIDES[::-1]:
            laid = [collate(one, 0) for one in batches.micro_batches(max(step, 0), limits[side])]
            spent = harness.milliseconds(lambda laid=laid: contest.take(laid))  # type: ignore[misc]
            if step >= 0:
                taken[side] += spent
                made[side] += [
                    (int(one.attention_mask_BS.sum()), one.input_ids_BS.numel()) for one in laid
                ]
    found = {}
    for side, passes in made.items():
        real, held = (sum(numbers) for numbers in zip(*passes, strict=True))
        found[side] = Epoch(len(passes), real / len(passes), 1 - real / held, taken[side])
    return found


def worst_gradient(
    contest: Contest, rows: Sequence[Example], limits: dict[str, PassLimit]
) -> float:
    """Of the first batch by either way; without the balance loss, which is made of what comes
    together."""
    spec = contest.spec.model_copy(update={"loss": LossSpec(load_balance_weight=0.0)})
    step = Batches(rows, len(rows))
    ways = [[collate(one, 0) for one in step.micro_batches(0, limits[side])] for side in SIDES]
    return contest.worst_gradient(ways, spec)


def described(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    sizes = "; ".join(f"{name} {size}" for name, size in result["sizes"].items())
    lines = [
        f"| {side} | {one['passes']} | {one['tokens_of_a_pass']:.0f} | {one['padding']:.1%} |"
        for side, one in result["epochs"].items()
    ]
    return "\n".join(
        [
            f"{machine()}\n\n{sizes}\n",
            "An epoch of the same steps by either way, in turns; CPU time of one thread, float32:",
            f"**{result['tokens_per_s_over_rows']:.2f}** times as many tokens a CPU second with",
            "passes counted by their tokens.\n",
            "| passes counted by | passes | tokens of a pass | padding |",
            "| --- | ---: | ---: | ---: |",
            *lines,
            f"\nGradients differ by at most {result['worst_gradient']:.1g} of a tensor's largest.",
        ]
    )


def main() -> None:
    arguments = harness.parser(__doc__, Sizes()).parse_args()
    table = harness.output(arguments.json)
    values = vars(arguments)
    sizes = replace(Sizes(), **{name: values[name] for name in asdict(Sizes())})
    torch.set_num_threads(1)
    shared = {name: getattr(sizes, name) for name in asdict(sizes) if hasattr(ModelSizes, name)}
    contest = Contest(ModelSizes(**shared))
    rows = examples(lengths(sizes), sizes.vocabulary)
    limits = {
        "rows": PassLimit(rows=max(sizes.tokens // sizes.longest, 1)),
        "tokens": PassLimit(tokens=sizes.tokens),
    }
    found = epochs(contest, Batches(rows, sizes.batch), limits)
    for side, one in found.items():
        speed = 1000 * sum(map(len, rows)) / one.milliseconds
        print(f"{side}: {one.passes} passes, {speed:.0f} tokens a CPU second", file=table)
    result = {
        "tokens_per_s_over_rows": found["rows"].milliseconds / found["tokens"].milliseconds,
        "epochs": {side: asdict(one) for side, one in found.items()},
        "worst_gradient": worst_gradient(contest, rows[: sizes.batch], limits),
        "sizes": asdict(sizes),
    }
    if sizes == Sizes():
        write_section("token_passes.py", described(result))
    harness.finish(result, arguments.json)


if __name__ == "__main__":
    main()
