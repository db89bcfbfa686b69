"""From an engine's chunks, of one choice or several, to OpenAI's answers: whole or as server-sent
events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from hashlib import blake2b

from orchestrator.openai.answers import ErrorBody
from orchestrator.openai.errors import error_body, told
from orchestrator.openai.response import (
    Answer,
    Reply,
    ReplyChoice,
    StreamEvent,
    Told,
    usage,
)
from workers.engine.request import Chunk, TextRequest


async def whole(reply: Reply, chunks: AsyncGenerator[Chunk]) -> Answer:
    """The answer in one body, with all its choices."""
    choices: dict[int, ReplyChoice] = {}
    async with aclosing(chunks):
        async for chunk in chunks:
            choices.setdefault(chunk.index, ReplyChoice(chunk.index)).add(chunk)
    assert choices, "a backend gives a last chunk at least"
    in_order = [choices[index] for index in sorted(choices)]
    return reply.whole(in_order, usage(chunk.prompt_tokens, chunk.completion_tokens))


async def events(
    reply: Reply, first: Chunk, rest: AsyncGenerator[Chunk], include_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events. What fails halfway is an event too: the status is out."""
    stream = _Stream(reply)
    async with aclosing(rest):
        try:
            for body in stream.bodies(chunk := first):
                yield _event(body)
            async for chunk in rest:
                for body in stream.bodies(chunk):
                    yield _event(body)
            if include_usage:
                yield _event(reply.usage(usage(chunk.prompt_tokens, chunk.completion_tokens)))
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield _event(error_body(told(error, reply.id)))


class _Stream:
    """What a stream has shown of each choice."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._told: dict[int, Told] = {}

    def bodies(self, chunk: Chunk) -> list[StreamEvent]:
        """The events of a chunk; of one that shows nothing none, but for a choice's first."""
        opening = [] if chunk.index in self._told else self._reply.opening(chunk.index)
        piece = ReplyChoice(chunk.index, told=self._told.setdefault(chunk.index, Told()))
        piece.add(chunk)
        shows = piece.text or piece.finish or piece.logprobs
        return [*opening, self._reply.piece(piece)] if shows or opening else []


def _event(body: StreamEvent | ErrorBody) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


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
