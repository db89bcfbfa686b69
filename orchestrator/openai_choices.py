"""Several answers to one prompt: `n` of OpenAI's protocol."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from hashlib import blake2b

from workers.engine.request import Chunk, TextRequest

Generate = Callable[[TextRequest], AsyncGenerator[Chunk]]


def choices(generate: Generate, request: TextRequest, count: int) -> AsyncGenerator[Chunk]:
    """The chunks of `count` answers as they come, each with its answer's index.

    Every answer is a request of its own, with a seed that follows from the first's; the first is
    what one answer alone would be. `completion_tokens` counts those of all so far. The first error
    ends all.
    """
    if count == 1:
        return generate(request)
    requests = [replace(request, seed=_seed(request.seed, index)) for index in range(count)]
    return _merged([generate(one) for one in requests])


def _seed(seed: int, index: int) -> int:
    if index == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed}/choice {index}".encode(), digest_size=7).digest())


async def _merged(streams: list[AsyncGenerator[Chunk]]) -> AsyncGenerator[Chunk]:
    queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue()
    readers = [asyncio.create_task(_read(queue, *one)) for one in enumerate(streams)]
    counts = [0] * len(streams)
    unfinished = len(streams)
    try:
        while unfinished:
            chunk = await queue.get()
            if isinstance(chunk, Exception):
                raise chunk
            counts[chunk.index] = chunk.completion_tokens
            unfinished -= chunk.finish is not None
            yield replace(chunk, completion_tokens=sum(counts))
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(
    queue: asyncio.Queue[Chunk | Exception], index: int, stream: AsyncGenerator[Chunk]
) -> None:
    try:
        async with aclosing(stream):
            async for chunk in stream:
                queue.put_nowait(replace(chunk, index=index))
    except Exception as error:
        queue.put_nowait(error)
