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
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import harness
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from layer_step import GatedBlock, Sizes

from workers.layers import bank as banks
from workers.layers import mixture as mixtures
from workers.layers.experts import BlockExperts, LinearExperts
from workers.layers.feed_forward import FeedForward, find_feed_forward
from workers.spec import AdapterSpec

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


def race(
    turn: Callable[[], None], ways: Mapping[str, Callable[[], None]], rounds: int
) -> dict[str, float]:
    """Median CPU milliseconds of a turn in each way; `ways` switch to theirs."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 2):
        for name, switch in ways.items():
            switch()
            times[name].append(harness.milliseconds(turn))
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def switch(module: object, name: str, value: int) -> Callable[[], None]:
    """Sets one of the constants that are sought."""
    return lambda: setattr(module, name, value)


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
    before = banks.DENSE_RANKS, mixtures.PLAIN_PRODUCTS
    ranks: dict[int, tuple[float, float]] = {}
    print(f"{'E*R':>6} {'dense ms':>10} {'grouped ms':>10}", file=out)
    for count in experts:
        taken = race(
            by_ranks(sizes, count),
            {
                "dense": switch(banks, "DENSE_RANKS", ALWAYS),
                "grouped": switch(banks, "DENSE_RANKS", NEVER),
            },
            sizes.rounds,
        )
        ranks[count * sizes.rank] = taken["dense"], taken["grouped"]
        print(f"{count * sizes.rank:6} {taken['dense']:10.2f} {taken['grouped']:10.2f}", file=out)
    banks.DENSE_RANKS = before[0]
    pairs: dict[int, tuple[float, float]] = {}
    print(f"{'pairs':>6} {'plain ms':>10} {'chunked ms':>10}", file=out)
    for count in tokens:
        taken = race(
            by_pairs(sizes, count),
            {
                "plain": switch(mixtures, "PLAIN_PRODUCTS", ALWAYS),
                "chunked": switch(mixtures, "PLAIN_PRODUCTS", NEVER),
            },
            sizes.rounds,
        )
        pairs[count * sizes.top_k] = taken["plain"], taken["chunked"]
        print(
            f"{count * sizes.top_k:6} {taken['plain']:10.2f} {taken['chunked']:10.2f}",
            file=out,
            flush=True,
        )
    mixtures.PLAIN_PRODUCTS = before[1]
    return {
        "dense_up_to_ranks": crossover(ranks),
        "plain_up_to_pairs": crossover(pairs),
        "dense_over_grouped": {str(k): round(a / b, 3) for k, (a, b) in ranks.items()},
        "plain_over_chunked": {str(k): round(a / b, 3) for k, (a, b) in pairs.items()},
        "sizes": asdict(sizes),
    }


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
