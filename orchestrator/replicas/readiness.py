"""Two phases before a version gets traffic: every replica loads it, then every replica shows what
it has loaded. What they show the first time is kept, and what they show later is held against it.

Digests cover the version's own files. They say nothing of the base model beside it, of which
`base_digest` reads about a thousand values a matrix, nor of what became of either in memory: that
is what the golden prompt is for.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.replicas.golden import LOGPROBS, Golden, GoldenAnswer, alike, places, shown
from workers.adapter.digest import folder_digest
from workers.config.base import InputError
from workers.engine.request import AdapterRef, Chunk, RequestError, TextRequest

BUSY = frozenset({"queue_full", "timeout", "engine_stopped"})
PATIENCE = 60
"""Times that a busy replica is asked, half a second apart."""


class NotNow(RuntimeError):  # noqa: N818
    """Nothing is known against the version: to be tried again soon."""


class OtherBase(NotNow):
    """A replica of the endpoint that this one takes the place of, with another base model. Both
    live for a while, and the router does not tell them apart."""


@dataclass(frozen=True)
class Acknowledged:
    """What a replica says of a version that it has loaded."""

    digest: str
    """SHA-256 of the folder, as this replica reads it."""
    answer: GoldenAnswer
    """To the golden prompt."""
    hardware: str = ""
    """What it runs on: answers may differ between kinds."""


class Generates(Protocol):
    """An engine in this process."""

    def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """The answer, piece by piece."""
        ...


class Fleet(Protocol):
    """All replicas that live."""

    async def load(self, adapter: AdapterRef) -> None:
        """Hold an adapter ready on all of them; InputError where one of them cannot."""
        ...

    async def check(self, adapter: AdapterRef, golden: Golden) -> Sequence[Acknowledged]:
        """What each of them says; InputError where one of them cannot answer."""
        ...


class Records(Protocol):
    """What replicas answered when all of them first acknowledged a version."""

    def keep(self, digest: str, answers: Mapping[str, GoldenAnswer]) -> Mapping[str, GoldenAnswer]:
        """Keep these, by hardware, where there are none; returns what is kept. Blocks."""
        ...


class TwoPhases:
    """Makes versions ready for traffic."""

    def __init__(self, fleet: Fleet, golden: Golden, records: Records | None = None) -> None:
        self._fleet, self._golden, self._records = fleet, golden, records

    async def __call__(self, adapter: AdapterRef) -> None:
        """Return when every replica holds the version and answers alike, today and ever since;
        InputError says what is wrong with it, any other error that it could not be told."""
        await self._fleet.load(adapter)
        said = await self._fleet.check(adapter, self._golden)
        if any(one.digest != Path(adapter.folder).name for one in said):
            raise InputError(
                f"version {adapter.slot}: a replica reads other files than were stored"
            )
        tolerance = self._golden.tolerance
        if not all(alike(said[0].answer, one.answer, tolerance) for one in said):
            answers = "; ".join(sorted({shown(one.answer) for one in said}))
            raise InputError(
                f"version {adapter.slot}: replicas answer the golden prompt differently: {answers}"
            )
        await self._remember(adapter, {one.hardware: one.answer for one in said})

    async def _remember(self, adapter: AdapterRef, answers: Mapping[str, GoldenAnswer]) -> None:
        if self._records is None:
            return
        digest = Path(adapter.folder).name
        kept = await asyncio.to_thread(self._records.keep, digest, answers)
        for hardware, answer in answers.items():
            hold(adapter, answer, kept[hardware], self._golden.tolerance)


def hold(adapter: AdapterRef, answer: GoldenAnswer, kept: GoldenAnswer, tolerance: float) -> None:
    """InputError where the answer is not the one that was kept."""
    if not alike(answer, kept, tolerance):
        raise InputError(
            f"version {adapter.slot}: answers the golden prompt with {shown(answer)}, but first "
            f"with {shown(kept)}: the base model's files or this machine may be damaged (another "
            "rollout.golden_prompt begins anew)"
        )


async def acknowledge(engine: Generates, adapter: AdapterRef, golden: Golden) -> Acknowledged:
    """One replica's word. InputError where the answer fails, as with numbers that are not finite;
    NotNow where the engine is too busy."""
    digest = await asyncio.to_thread(folder_digest, Path(adapter.folder))
    request = TextRequest(
        golden.prompt, adapter, 0, golden.tokens, temperature=0, logprobs=LOGPROBS
    )
    for _ in range(PATIENCE):
        try:
            return Acknowledged(digest, await _answer(engine, request))
        except RequestError as error:
            if error.code not in BUSY:
                raise InputError(f"version {adapter.slot}: golden prompt: {error}") from None
        await asyncio.sleep(0.5)
    raise NotNow(f"version {adapter.slot}: the engine is too busy for the golden prompt")


async def _answer(engine: Generates, request: TextRequest) -> GoldenAnswer:
    answer: GoldenAnswer = ()
    async with aclosing(engine.generate(request)) as chunks:
        async for chunk in chunks:
            answer += places(chunk)
    return answer
