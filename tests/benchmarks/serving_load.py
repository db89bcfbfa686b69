"""Clients of serving.py in a process of their own: each sends its next request when the last one
has been answered."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
from serving_process import answer_all
from serving_work import Sizes, work


def start(options: dict[str, Any]) -> Callable[..., Any]:
    """Take turns against the gateway at `url`."""
    sizes = Sizes(**options["sizes"])

    def turn(models: Sequence[str] = (), clients: int = 0, seed: int = 0) -> dict[str, Any]:
        if not models:
            return {}
        # Turns must not meet each other's prompts, which the engine has read before.
        asked = work(sizes, options["vocabulary"], clients, seed, " ".join(models))
        bodies = [
            {
                "model": models[number % len(models)],
                "prompt": request.prompt,
                "max_tokens": request.tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            for number, request in enumerate(asked)
        ]
        return asyncio.run(_turn(options["url"], bodies, clients))

    return turn


async def _turn(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
    waiting, firsts, tokens = iter(bodies), [], []
    async with httpx.AsyncClient(base_url=url, timeout=300) as web:
        while not (await web.get("/ready")).is_success:
            await asyncio.sleep(0.05)
        begun = time.perf_counter()
        await asyncio.gather(*(_client(web, waiting, firsts, tokens) for _ in range(clients)))
        seconds = time.perf_counter() - begun
    return {"seconds": seconds, "tokens": sum(tokens), "ttft": firsts}


async def _client(
    web: httpx.AsyncClient,
    waiting: Iterator[dict[str, Any]],
    firsts: list[float],
    tokens: list[int],
) -> None:
    for body in waiting:
        begun, first = time.perf_counter(), None
        async with web.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise SystemExit(str(event["error"]))
                if first is None:
                    first = time.perf_counter() - begun
                if event.get("usage"):
                    tokens.append(event["usage"]["completion_tokens"])
        if first is None:
            raise SystemExit(f"no answer: {response.status_code}")
        firsts.append(first)


if __name__ == "__main__":
    answer_all(start)
