"""Clients that attack, in a process of their own: each sends its next body when the last one was
answered, and leaves some answers unread."""

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
from attacks import prompts, schemas
from serving_process import answer_all

BODIES = {"schemas": schemas.bodies, "prompts": prompts.bodies}
LEFT, PATIENCE = 5, 0.2
"""One request of so many is left after so many seconds."""


def start(options: dict[str, Any]) -> Callable[..., Any]:
    """Attack the gateway at `url` with the bodies of `attack`."""
    bodies = list(BODIES[options["attack"]]())

    def turn(clients: int = 0, seconds: float = 0, key: str = "") -> dict[str, int]:
        url = options["url"]
        return asyncio.run(_attack(url, key, bodies, clients, seconds)) if clients else {}

    return turn


async def _attack(
    url: str, key: str, bodies: list[tuple[str, bytes]], clients: int, seconds: float
) -> dict[str, int]:
    """How many got which status; 0 for those who left."""
    statuses: Counter[int] = Counter()
    turns, end = enumerate(itertools.cycle(bodies)), time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def client(web: httpx.AsyncClient) -> None:
        while (left := end - time.monotonic()) > 0:
            number, (path, body) = next(turns)
            patience = PATIENCE if number % LEFT == 0 else max(left, 1)
            try:
                async with asyncio.timeout(patience):
                    statuses[(await web.post(path, content=body)).status_code] += 1
            except (TimeoutError, httpx.HTTPError):
                statuses[0] += 1

    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300) as web:
        await asyncio.gather(*(client(web) for _ in range(clients)))
    return {str(status): count for status, count in statuses.items()}


if __name__ == "__main__":
    answer_all(start)
