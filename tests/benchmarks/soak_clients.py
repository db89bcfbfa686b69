"""Clients that never tire: what they got, held against what the version they name must answer."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from soak_shop import NAME, PROMPTS, Shop, readable

REQUEST_SECONDS = 200


@dataclass
class Answers:
    """The score."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)


class Client:
    """One user, who sends one request after the other, every second one as a stream."""

    def __init__(self, shop: Shop, user: str, tokens: int, score: Answers) -> None:
        self._shop, self._user, self._tokens, self._score = shop, user, tokens, score

    async def run(self, done: asyncio.Event) -> None:
        """Ask until done; a request that has begun is seen through."""
        async with httpx.AsyncClient(base_url=self._shop.url, timeout=REQUEST_SECONDS) as web:
            for number in itertools.count():
                if done.is_set():
                    return
                prompt = PROMPTS[(number * 5 + len(self._user)) % len(PROMPTS)]
                self._score.requests += 1
                try:
                    version, text = await self._ask(web, prompt, number % 2 == 1)
                except Exception as error:
                    self._score.failures.append(f"{type(error).__name__}: {error}"[:300])
                    continue
                self._score.versions[version] += 1
                if self._shop.expected.get((version, prompt)) != readable(text):
                    self._score.mixed.append(f"{version} {prompt!r}: {text!r}")

    async def _ask(self, web: httpx.AsyncClient, prompt: str, stream: bool) -> tuple[str, str]:
        body = {
            "model": NAME,
            "prompt": prompt,
            "max_tokens": self._tokens,
            "temperature": 0,
            "user": self._user,
            "stream": stream,
        }
        if not stream:
            response = await web.post("/v1/completions", json=body)
            if not response.is_success:
                raise ValueError(f"{response.status_code} {response.text}")
            return _whole([response.json()])
        async with web.stream("POST", "/v1/completions", json=body) as response:
            if not response.is_success:
                raise ValueError(f"{response.status_code} {await response.aread()!r}")
            return _whole([event async for event in _events(response)])


async def _events(response: httpx.Response) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line:
            yield json.loads(line.removeprefix("data: "))
    raise ValueError("the stream was cut off")


def _whole(pieces: list[Any]) -> tuple[str, str]:
    """Version and text of a whole answer; ValueError where it is none."""
    errors = [piece for piece in pieces if "error" in piece]
    if errors:
        raise ValueError(f"error in the answer: {errors}")
    choices = [choice for piece in pieces for choice in piece["choices"]]
    if choices[-1]["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"no end: {choices[-1]}")
    [version] = {piece["system_fingerprint"] for piece in pieces}
    return version, "".join(choice["text"] for choice in choices)
