"""Where one way of computing the layers overtakes the other, for the constants in the code.

    python tests/benchmarks/crossover.py [--json PATH|-]

bank.DENSE_RANKS: rank-space products of all experts with every token (one matmul, then the chosen
ones), or of each pair with its own expert (sorted, grouped matmuls), by experts times rank.
mixture.PLAIN_PRODUCTS: the masked pair with torch's own gradients, or pairs sorted by expert in
chunks, by (token, expert) pairs (times the 8 experts' ranks).
Forward + backward, interleaved, one thread, process CPU time, medians.

Shapes: T tokens, D width, F feed-forward width, E experts, K top-k, R rank.
"""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import harness
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from layer_step import GatedBlock, Sizes

from workers.config.adapter import AdapterSpec
from workers.layers import expert_bank as banks
from workers.layers.experts import BlockExperts, LinearExperts
from workers.layers.feed_forward import FeedForward, find_feed_forward
from workers.layers.mixture import select as mixtures

NEVER, ALWAYS = -1, 2**62


def by_ranks(sizes: Sizes, experts: int) -> Callable[[], None]:
    """A linear with experts: the rank-space products and the frozen matmul."""
    frozen = nn.Linear(sizes.width, sizes.feed_forward, bias=False).requires_grad_(False)
    layer = LinearExperts(frozen, _spec(sizes, experts, "linear"))
    return _turn(lambda hidden: layer(frozen, hidden), layer, sizes.tokens, sizes.width)


def by_pairs(sizes: Sizes, tokens: int) -> Callable[[], None]:
    """A block of eight experts over so many tokens."""
    block = GatedBlock(sizes)
    view = find_feed_forward(block, dict(block.named_children()))
    assert isinstance(view, FeedForward)
    layer = BlockExperts(view, _spec(sizes, 8, "block"), list(view.linears))
    return _turn(lambda hidden: layer(view, hidden), layer, tokens, sizes.width)


def _spec(sizes: Sizes, experts: int, kind: str) -> AdapterSpec:
    return AdapterSpec.model_validate(
        {
            "experts": kind,
            "num_experts": experts,
            "top_k": sizes.top_k,
            "rank": sizes.rank,
            "dropout": 0,
        }
    )


def _turn(
    run: Callable[[Tensor], Tensor], layer: nn.Module, tokens: int, width: int
) -> Callable[[], None]:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    hidden = torch.randn(tokens, width, requires_grad=True)

    def turn() -> None:
        layer.zero_grad()
        output = run(hidden)
        output.backward(torch.ones_like(output))

    return turn


@dataclass(frozen=True)
class Question:
    """A constant that is sought: up to which size the first of two ways is the faster one."""

    module: Any
    constant: str
    ways: tuple[str, str]
    """Taken where the constant is endless, and where it is below every size."""
    turns: Mapping[int, Callable[[], None]]
    """One turn for every size."""

    def answer(self, rounds: int, out: TextIO) -> dict[int, tuple[float, float]]:
        """Median CPU milliseconds of both ways, by size; they take turns."""
        before = getattr(self.module, self.constant)
        print(f"{'size':>6}", *(f"{way + ' ms':>11}" for way in self.ways), file=out)
        taken: dict[int, tuple[float, float]] = {}
        for size, turn in self.turns.items():
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds + 2):
                for way, value in enumerate((ALWAYS, NEVER)):
                    setattr(self.module, self.constant, value)
                    times[way].append(harness.milliseconds(turn))
            first, second = (statistics.median(one[2:]) for one in times)
            taken[size] = first, second
            print(f"{size:6} {first:11.2f} {second:11.2f}", file=out, flush=True)
        setattr(self.module, self.constant, before)
        return taken


def crossover(table: Mapping[int, tuple[float, float]]) -> int:
    """The largest size up to which the first way is never slower."""
    best = 0
    for size, (first, second) in sorted(table.items()):
        if first > second:
            break
        best = size
    return best


def run(sizes: Sizes, experts: Sequence[int], tokens: Sequence[int], out: TextIO) -> object:
    """Both tables, and the crossovers."""
    by_rank = {count * sizes.rank: by_ranks(sizes, count) for count in experts}
    by_pair = {count * sizes.top_k: by_pairs(sizes, count) for count in tokens}
    questions = {
        "ranks": Question(banks, "DENSE_RANKS", ("dense", "grouped"), by_rank),
        "pairs": Question(mixtures, "PLAIN_PRODUCTS", ("plain", "chunked"), by_pair),
    }
    result: dict[str, object] = {"sizes": asdict(sizes)}
    for size, question in questions.items():
        taken = question.answer(sizes.rounds, out)
        first, second = question.ways
        result[f"{first}_up_to_{size}"] = crossover(taken)
        result[f"{first}_over_{second}"] = {str(n): round(a / b, 3) for n, (a, b) in taken.items()}
    return result


def main() -> None:
    """Parse the arguments, print the tables, and end with one line of JSON."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--pairs-of", type=int, nargs="+", default=[4, 16, 64, 128, 256, 512])
    options = vars(parser.parse_args())
    path, experts, tokens = (options.pop(name) for name in ("json", "experts", "pairs_of"))
    torch.set_num_threads(1)
    harness.finish(run(Sizes(**options), experts, tokens, harness.output(path)), path)


if __name__ == "__main__":
    main()
