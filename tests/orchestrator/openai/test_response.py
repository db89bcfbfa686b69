"""The bytes of our answers: fields, their order, what is null and what is absent, as OpenAI's are.
What they hold is what the OpenAPI document says."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter

from orchestrator.openai.answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ErrorBody,
)
from orchestrator.openai.errors import error_body
from orchestrator.openai.response import ChatReply, Reply
from orchestrator.openai.stream import events, whole
from workers.engine.request import Chunk, RequestError, TokenText
from workers.engine.routing.types import LayerRouting, RequestRouting, TokenRouting

PLACE = LayerRouting("layers.0.mlp", (1, 2), (0.25, 1e-05), 1.5, 0.5)
ROUTING = RequestRouting(3, (PLACE,), ((TokenRouting((1, 0), (0.75, 0.25)),),), ("hé",))
TOKEN = TokenText("hé", b"h\xc3\xa9", -0.5, (TokenText("x", b"x", -1e-05),), 0)
CHUNKS = [
    Chunk("hé", (1,), 2, 1, logprobs=(TOKEN,)),
    Chunk("", (2,), 2, 2),
    Chunk("</s>\n", (3,), 2, 3, "stop", routing=ROUTING),
]
USAGE = '"usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}'
ROUTED = (
    '"moetune": {"routing": {"tokens": 3, "layers": [{"layer": "layers.0.mlp", "load": [1, 2], '
    '"weight": [0.25, 1e-05], "entropy": 1.5, "margin": 0.5}], "by_token": [[{"experts": [1, 0], '
    '"gates": [0.75, 0.25]}]], "texts": ["hé"]}}'
)
HEAD = '{"id": "ID", "created": 0, "model": "home@1", "system_fingerprint": "fp", "object": '
TEXT_LOGPROBS = (
    '{"tokens": ["hé"], "token_logprobs": [-0.5], "top_logprobs": [{"x": -1e-05}], '
    '"text_offset": [0]}'
)
CHAT_LOGPROBS = (
    '{"content": [{"token": "hé", "logprob": -0.5, "bytes": [104, 195, 169], "top_logprobs": '
    '[{"token": "x", "logprob": -1e-05, "bytes": [120]}]}], "refusal": null}'
)
KINDS = {
    Reply: (
        HEAD + '"text_completion", "choices": [{"index": 0, "text": "hé</s>\\n", "logprobs": '
        f'{TEXT_LOGPROBS}, "finish_reason": "stop"}}], {USAGE}, {ROUTED}}}',
        [
            HEAD + '"text_completion", "choices": [{"index": 0, "text": "hé", "logprobs": '
            f'{TEXT_LOGPROBS}, "finish_reason": null}}]}}',
            HEAD + '"text_completion", "choices": [{"index": 0, "text": "</s>\\n", "logprobs": '
            f'null, "finish_reason": "stop"}}], {ROUTED}}}',
            HEAD + f'"text_completion", "choices": [], {USAGE}}}',
        ],
    ),
    ChatReply: (
        HEAD + '"chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", '
        f'"content": "hé</s>\\n", "refusal": null}}, "logprobs": {CHAT_LOGPROBS}, '
        f'"finish_reason": "stop"}}], {USAGE}, {ROUTED}}}',
        [
            HEAD + '"chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": '
            '"assistant", "content": ""}, "logprobs": null, "finish_reason": null}]}',
            HEAD + '"chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "hé"}, '
            f'"logprobs": {CHAT_LOGPROBS}, "finish_reason": null}}]}}',
            HEAD + '"chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": '
            f'"</s>\\n"}}, "logprobs": null, "finish_reason": "stop"}}], {ROUTED}}}',
            HEAD + f'"chat.completion.chunk", "choices": [], {USAGE}}}',
        ],
    ),
}


async def given(chunks: list[Chunk]) -> AsyncGenerator[Chunk]:
    for chunk in chunks:
        yield chunk


def shown(text: str, reply: Reply) -> str:
    """Without what is another one's each time."""
    return re.sub(r'"created": ?\d+', '"created": 0', text.replace(reply.id, "ID"))


def streamed(reply: Reply, chunks: list[Chunk]) -> list[str]:
    async def collect() -> list[str]:
        rest = given(chunks[1:])
        return [shown(event, reply) async for event in events(reply, chunks[0], rest, True)]

    return asyncio.run(collect())


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_answers_bytes(kind: type[Reply]) -> None:
    reply = kind("home@1", "fp", tells_routing=True)
    body = JSONResponse(asyncio.run(whole(reply, given(CHUNKS)))).body
    wanted = json.dumps(json.loads(KINDS[kind][0]), ensure_ascii=False, separators=(",", ":"))
    assert (
        re.sub(r'"created":\d+', '"created":0', bytes(body).decode()).replace(reply.id, "ID")
        == wanted
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_streams_bytes(kind: type[Reply]) -> None:
    reply = kind("home@1", "fp", tells_routing=True)
    wanted = [*KINDS[kind][1], "[DONE]"]
    assert streamed(reply, CHUNKS) == [f"data: {event}\n\n" for event in wanted]


def test_a_piece_of_a_chat_without_text_has_no_content() -> None:
    chunks = [Chunk("a", (1,), 1, 1), Chunk("", (2,), 1, 2, "length")]
    last = streamed(ChatReply("home@1", "fp"), chunks)[-3]
    assert '"delta": {}, "logprobs": null, "finish_reason": "length"' in last


@pytest.mark.parametrize(
    ("documented", "body"),
    [
        (Completion, KINDS[Reply][0]),
        *((Completion, event) for event in KINDS[Reply][1]),
        (ChatCompletion, KINDS[ChatReply][0]),
        *((ChatCompletionChunk, event) for event in KINDS[ChatReply][1]),
        (ErrorBody, json.dumps(error_body(RequestError("no", "top_p", 400, "invalid_value")))),
        (ErrorBody, json.dumps(error_body(RequestError("no", None, 500)))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_document_says_all_of_an_answer(documented: Any, body: str) -> None:
    """pydantic drops what a type does not name, and fills in what has a default."""
    adapter = TypeAdapter[Any](documented)
    found = adapter.dump_python(adapter.validate_json(body, strict=True), mode="json")
    assert found == json.loads(body)
