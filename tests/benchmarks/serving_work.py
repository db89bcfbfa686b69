"""What all contestants of serving.py are asked.

No import but the standard library: moe-peft's environment has nothing of ours.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Sizes:
    """Model, adapters and load."""

    shape: str = "576x1536x4"
    """WIDTHxFEED_FORWARDxLAYERS of the random base; of no interest with --model."""
    vocabulary: int = 8192
    adapters: int = 8
    experts: int = 8
    top_k: int = 2
    rank: int = 8
    prompt: int = 192
    """Longest prompt; the shortest has a twelfth."""
    answer: int = 64
    """Longest answer; the shortest has a quarter."""
    requests: int = 3
    """Of each client; single ones send as many as eight together."""
    rounds: int = 3


class Request(NamedTuple):
    """Token ids, and how many to add."""

    prompt: list[int]
    tokens: int


def work(sizes: Sizes, vocabulary: int, clients: int, seed: int, whose: str = "") -> list[Request]:
    """The requests of one turn, no two of which begin alike; lengths are the same for all."""
    draw, words = random.Random(seed), random.Random(f"{seed} {whose}")
    lengths = range(sizes.prompt // 12, sizes.prompt + 1)
    answers = range(sizes.answer // 4, sizes.answer + 1)
    return [
        Request(
            [words.randrange(10, vocabulary) for _ in range(draw.choice(lengths))],
            draw.choice(answers),
        )
        for _ in range(max(clients, 8) * sizes.requests)
    ]
