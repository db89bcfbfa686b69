"""Turns of those who take so many requests at once, and the next when all of these have ended.

No import but the standard library: moe-peft's environment has nothing of ours.
"""

import time
from collections.abc import Callable
from typing import Any

from serving_work import Request, Sizes, work


def in_batches(
    batch: Callable[[list[Request]], None], options: dict[str, Any]
) -> Callable[..., dict[str, float]]:
    """What answers turns: tokens and what they took, or no facts to no question."""
    sizes = Sizes(**options["sizes"])

    def turn(clients: int = 0, seed: int = 0) -> dict[str, float]:
        if not clients:
            return {}
        asked = work(sizes, options["vocabulary"], clients, seed)
        wall, cpu = time.perf_counter(), time.process_time()
        for at in range(0, len(asked), clients):
            batch(asked[at : at + clients])
        return {
            "tokens": sum(request.tokens for request in asked),
            "seconds": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
        }

    return turn
