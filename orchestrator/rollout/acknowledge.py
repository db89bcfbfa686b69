"""Two phases before a version gets traffic: every replica loads it, then every replica shows what
it has loaded."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.adapter.digest import folder_digest
from workers.configuration import InputError
from workers.engine.request import Adapter, Chunk, RequestError, TextRequest

BUSY = frozenset({"queue_full", "timeout", "engine_stopped"})
PATIENCE = 60
"""Times that a busy replica is asked, half a second apart."""


class NotNow(RuntimeError):  # noqa: N818
    """Nothing is known against the version: to be tried again soon."""


@dataclass(frozen=True)
class Golden:
    """A short prompt that every replica answers greedily."""

    prompt: str
    tokens: int


@dataclass(frozen=True)
class Acknowledged:
    """What a replica says of a version that it has loaded."""

    digest: str
    """SHA-256 of the folder, as this replica reads it."""
    tokens: tuple[int, ...]
    """Its answer to the golden prompt."""


class Generates(Protocol):
    """An engine in this process."""

    def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """The answer, piece by piece."""
        ...


class Fleet(Protocol):
    """All replicas that live."""

    async def load(self, adapter: Adapter) -> None:
        """Hold an adapter ready on all of them; InputError where one of them cannot."""
        ...

    async def check(self, adapter: Adapter, golden: Golden) -> Sequence[Acknowledged]:
        """What each of them says; InputError where one of them cannot answer."""
        ...


class TwoPhases:
    """Makes versions ready for traffic."""

    def __init__(self, fleet: Fleet, golden: Golden) -> None:
        self._fleet, self._golden = fleet, golden

    async def __call__(self, adapter: Adapter) -> None:
        """Return when every replica holds the version and answers alike; InputError says what is
        wrong with it, any other error that it could not be told."""
        await self._fleet.load(adapter)
        said = set(await self._fleet.check(adapter, self._golden))
        if any(one.digest != Path(adapter.folder).name for one in said):
            raise InputError(
                f"version {adapter.slot}: a replica reads other files than were stored"
            )
        if len(said) > 1:
            answers = "; ".join(str(list(one.tokens)) for one in said)
            raise InputError(
                f"version {adapter.slot}: replicas answer the golden prompt differently: {answers}"
            )


async def acknowledge(engine: Generates, adapter: Adapter, golden: Golden) -> Acknowledged:
    """One replica's word. InputError where the answer fails, as with numbers that are not finite;
    NotNow where the engine is too busy."""
    digest = await asyncio.to_thread(folder_digest, Path(adapter.folder))
    request = TextRequest(golden.prompt, adapter, 0, golden.tokens, temperature=0)
    for _ in range(PATIENCE):
        try:
            return Acknowledged(digest, await _tokens(engine, request))
        except RequestError as error:
            if error.code not in BUSY:
                raise InputError(f"version {adapter.slot}: golden prompt: {error}") from None
        await asyncio.sleep(0.5)
    raise NotNow(f"version {adapter.slot}: the engine is too busy for the golden prompt")


async def _tokens(engine: Generates, request: TextRequest) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    async with aclosing(engine.generate(request)) as chunks:
        async for chunk in chunks:
            tokens += chunk.tokens
    return tokens
