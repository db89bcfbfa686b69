"""Several answers: to one prompt (`n` of OpenAI's protocol), to several prompts, or both."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from hashlib import blake2b

from workers.engine.request import Chunk, TextRequest

Generate = Callable[[TextRequest], AsyncGenerator[Chunk]]
AT_ONCE = 8
"""Answers of one body that the engine is asked for at a time."""


def choices(
    generate: Generate, requests: Sequence[TextRequest], count: int
) -> AsyncGenerator[Chunk]:
    """The chunks of `count` answers to each request as they come, each with its answer's index:
    those to the first request come first.

    Every answer is a request of its own, with a seed that follows from its request's; the first is
    what one answer alone would be. `prompt_tokens` counts those of the prompts that were read so
    far, each once, `completion_tokens` those of all answers. The first error ends all.
    """
    if len(requests) * count == 1:
        return generate(requests[0])
    seeded = [
        replace(one, seed=_seed(one.seed, index)) for one in requests for index in range(count)
    ]
    return _merged([generate(one) for one in seeded], count)


def _seed(seed: int, index: int) -> int:
    if index == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed}/choice {index}".encode(), digest_size=7).digest())


async def _merged(streams: list[AsyncGenerator[Chunk]], count: int) -> AsyncGenerator[Chunk]:
    queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
    room = asyncio.Semaphore(AT_ONCE)
    readers = [asyncio.create_task(_read(queue, room, *one)) for one in enumerate(streams)]
    answered = [0] * len(streams)
    asked = [0] * (len(streams) // count)
    unfinished = len(streams)
    try:
        while unfinished:
            chunk = await queue.get()
            if isinstance(chunk, Exception):
                raise chunk
            answered[chunk.index] = chunk.completion_tokens
            asked[chunk.index // count] = chunk.prompt_tokens
            unfinished -= chunk.finish is not None
            yield replace(chunk, prompt_tokens=sum(asked), completion_tokens=sum(answered))
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(
    queue: asyncio.Queue[Chunk | Exception],
    room: asyncio.Semaphore,
    index: int,
    stream: AsyncGenerator[Chunk],
) -> None:
    try:
        async with room, aclosing(stream):
            async for chunk in stream:
                queue.put_nowait(replace(chunk, index=index))
    except Exception as error:
        queue.put_nowait(error)
