"""From an engine's chunks to OpenAI's answers, whole or as server-sent events."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from orchestrator.openai_reply import Reply, as_request_error, error_body, internal_error, usage
from workers.engine.request import Chunk
from workers.spec import InputError

log = logging.getLogger(__name__)


async def whole(reply: Reply, chunks: AsyncGenerator[Chunk]) -> dict[str, Any]:
    """The answer in one body."""
    text = ""
    async with aclosing(chunks):
        async for chunk in chunks:
            text += chunk.text
    assert chunk.finish is not None, "a backend's last chunk has a finish"
    return reply.whole(text, chunk.finish, usage(chunk.prompt_tokens, chunk.completion_tokens))


async def events(
    reply: Reply, first: Chunk, rest: AsyncGenerator[Chunk], include_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events. What fails halfway is an event too: the status is out."""
    async with aclosing(rest):
        try:
            for body in reply.opening():
                yield _event(body)
            chunk = first
            yield _event(reply.piece(chunk.text, chunk.finish))
            async for chunk in rest:
                if chunk.text or chunk.finish:
                    yield _event(reply.piece(chunk.text, chunk.finish))
            if include_usage:
                yield _event(reply.usage(usage(chunk.prompt_tokens, chunk.completion_tokens)))
            yield "data: [DONE]\n\n"
        except InputError as error:
            yield _event(error_body(as_request_error(error)))
        except Exception:
            log.exception("a stream failed")
            yield _event(error_body(internal_error()))


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
