"""From an engine's chunks to OpenAI's answers, whole or as server-sent events."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from orchestrator.openai.answers import ErrorBody
from orchestrator.openai.errors import error_body, told
from orchestrator.openai.openai_logprobs import Told
from orchestrator.openai.response import (
    Answer,
    Reply,
    ReplyChoice,
    StreamEvent,
    usage,
)
from workers.engine.request import Chunk


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
