"""A decoding step's feed-forward blocks: with adapters over bare, for a handful of tokens.

    python tests/benchmarks/decode.py [--json PATH|-]

The blocks of SmolLM2-135M (30 of 576 x 1536, so that their weights come from memory, as in a real
step), without gradients, float32. Bare; with one adapter for all tokens; with several, the tokens
dealt to them and to the bare base in turn. Turns of a few steps, one
thread, process CPU time, medians.

Shapes: T tokens, D width, F feed-forward width, E experts, K top-k, R rank.
"""

import statistics
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import harness
import torch
from results import machine, table, write_section
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from layer_step import NAMES, GatedBlock
from layer_step import Sizes as BlockSizes

from workers.config.adapter import AdapterSpec
from workers.injection.row_map import RowMap
from workers.injection.wrapper import AdaptedModule
from workers.layers.experts import BlockExperts
from workers.layers.feed_forward import find_feed_forward

GOAL = 1.3


@dataclass(frozen=True)
class Sizes:
    """What is timed."""

    width: int = 576
    feed_forward: int = 1536
    layers: int = 30
    experts: int = 8
    rank: int = 8
    top_k: int = 2
    adapters: int = 3
    rounds: int = 11


class Blocks:
    """The feed-forward blocks of a model, each as a module that adapters attach to."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        block_sizes = BlockSizes(width=sizes.width, feed_forward=sizes.feed_forward)
        self.rows = RowMap()
        self.rows.slots += [f"adapter {number}" for number in range(sizes.adapters)]
        self.modules = [self._site(GatedBlock(block_sizes), sizes) for _ in range(sizes.layers)]

    def _site(self, block: GatedBlock, sizes: Sizes) -> AdaptedModule:
        view = find_feed_forward(block, dict(block.named_children()))
        assert view is not None
        module = AdaptedModule(block, self.rows, view)
        spec = AdapterSpec(num_experts=sizes.experts, rank=sizes.rank, top_k=sizes.top_k)
        for slot in self.rows.slots:
            layer = BlockExperts(view, spec, NAMES)
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.02)
            module.add(slot, layer)
        return module.eval()

    @torch.inference_mode()
    def step(self, tokens: int, width: int, slots: list[str | None]) -> None:
        """One pass through all blocks, as the residual stream of a model goes."""
        hidden = torch.ones(1, tokens, width)
        with self.rows.assign(slots):
            for module in self.modules:
                hidden = hidden + module(hidden)


def measure(blocks: Blocks, sizes: Sizes, tokens: int) -> dict[str, float]:
    """Median CPU milliseconds of a step: bare, with one adapter, with several."""
    dealt = [None, *blocks.rows.slots]
    assigned: dict[str, list[str | None]] = {
        "bare": [None] * tokens,
        "one": [blocks.rows.slots[0]] * tokens,
        "several": [dealt[token % len(dealt)] for token in range(tokens)],
    }
    times: dict[str, list[float]] = {name: [] for name in assigned}
    for _ in range(sizes.rounds):
        for name, slots in assigned.items():
            step = partial(blocks.step, tokens, sizes.width, slots)
            step()  # Decoding repeats its steps: the turn before must not have emptied the cache.
            times[name] += [harness.milliseconds(step) for _ in range(3)]
    return {name: statistics.median(taken) for name, taken in times.items()}


def run(sizes: Sizes, tokens: list[int], out: TextIO, results: Path | None) -> dict[str, object]:
    """Time every number of tokens; the ratios, keyed by it, and the sizes."""
    blocks = Blocks(sizes)
    taken = {count: measure(blocks, sizes, count) for count in tokens}
    rows = [
        [
            str(count),
            *(f"{one[name]:.1f}" for name in ("bare", "one", "several")),
            f"{one['one'] / one['bare']:.2f}",
            f"{one['several'] / one['bare']:.2f}",
        ]
        for count, one in taken.items()
    ]
    heads = ["tokens", "bare ms", "one adapter ms", f"{sizes.adapters} and bare ms"]
    text = table([*heads, "one / bare", "several / bare"], rows)
    print(text, file=out)
    if results is not None:
        about = (
            f"{sizes.layers} blocks of {sizes.width} x {sizes.feed_forward}, "
            f"E={sizes.experts}, R={sizes.rank}, K={sizes.top_k}, float32, no gradients. "
            f"Goal: one adapter at most {GOAL} times the bare blocks."
        )
        write_section("decode.py", f"{machine()}\n\n{about}\n\n{text}", results)
    over = {
        name: {str(count): round(one[name] / one["bare"], 3) for count, one in taken.items()}
        for name in ("one", "several")
    }
    return {
        "adapter_over_base": over["one"],
        "several_over_base": over["several"],
        "sizes": asdict(sizes),
    }


def main() -> None:
    """Parse the arguments, print the table, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--results", type=Path, metavar="PATH", help="write a section there")
    options = vars(parser.parse_args())
    path, tokens, results = (options.pop(name) for name in ("json", "tokens", "results"))
    torch.set_num_threads(1)
    harness.finish(run(Sizes(**options), tokens, harness.output(path), results), path)


if __name__ == "__main__":
    main()
