"""What an answer may be asked for beyond its text: choices, log-probabilities, schemas, routing."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from orchestrator.api import create_app
from orchestrator.catalogue import Catalogue
from orchestrator.promotion import promote
from orchestrator.registry import Registry
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text import TextEngine
from workers.model import load_base
from workers.spec import ModelSpec

CHAT: dict[str, Any] = {
    "model": "home",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 16,
    "seed": 7,
}
TEXT: dict[str, Any] = {"model": "home", "prompt": "hello", "max_tokens": 16, "seed": 7}
SCHEMA = {
    "type": "object",
    "properties": {
        "room": {"enum": ["kitchen", "hall"]},
        "on": {"type": "boolean"},
        "levels": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["room", "on", "levels"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def app(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FastAPI]:
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
    version = registry.register("study", 1, make_adapter(51), {"validation": {"loss": 1.0}})
    promote(registry, version, "home", actor="t", metric="validation/loss", reason="t", force=True)
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    limits = Limits(max_batch_tokens=64, cache_tokens=1024, max_new_tokens=200, max_queued=8)
    engine = ContinuousEngine(base, limits)
    text = TextEngine(engine, base.tokenizer)
    catalogue = Catalogue(registry, "tiny-llama", text.load)
    asyncio.run(catalogue.refresh())
    yield create_app(text, catalogue)
    engine.close()


def ask(app: FastAPI, path: str, *bodies: dict[str, Any]) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as web:
            return await asyncio.gather(*(web.post(path, json=body) for body in bodies))

    return asyncio.run(asyncio.wait_for(main(), 60))


def chat(app: FastAPI, **fields: Any) -> Any:
    [response] = ask(app, "/v1/chat/completions", {**CHAT, **fields})
    assert response.is_success, response.text
    ChatCompletion.model_validate(response.json())
    return response.json()


def text(app: FastAPI, **fields: Any) -> Any:
    [response] = ask(app, "/v1/completions", {**TEXT, **fields})
    assert response.is_success, response.text
    Completion.model_validate(response.json())
    return response.json()


def streamed(app: FastAPI, **fields: Any) -> list[dict[str, Any]]:
    [response] = ask(app, "/v1/chat/completions", {**CHAT, "stream": True, **fields})
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    for event in events:
        ChatCompletionChunk.model_validate(event)
    return events


def test_choices_differ_and_the_first_is_what_one_alone_would_be(app: FastAPI) -> None:
    alone, three = chat(app), chat(app, n=3)
    texts = [choice["message"]["content"] for choice in three["choices"]]
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert texts[0] == alone["choices"][0]["message"]["content"]
    assert len(set(texts)) == 3
    assert chat(app, n=3)["choices"] == three["choices"]
    assert three["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] >= 16
    events = streamed(app, n=3, stream_options={"include_usage": True})
    assert events[-1]["usage"] == three["usage"]
    for index, whole in enumerate(texts):
        own = [c for event in events for c in event["choices"] if c["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in own) == whole
        assert [bool(c["finish_reason"]) for c in own] == [False] * (len(own) - 1) + [True]


def test_one_choice_that_is_refused_refuses_all(app: FastAPI) -> None:
    [response] = ask(app, "/v1/completions", {**TEXT, "n": 3, "max_tokens": 201})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")


def test_a_chat_tells_log_probabilities(app: FastAPI) -> None:
    reply = chat(app, logprobs=True, top_logprobs=3, temperature=0)
    [choice] = reply["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == reply["usage"]["completion_tokens"] - (choice["finish_reason"] == "stop")
    raw = bytes(byte for token in content for byte in token["bytes"])
    assert raw.decode(errors="replace") == choice["message"]["content"]
    for token in content:
        values = [top["logprob"] for top in token["top_logprobs"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert token["logprob"] == values[0] <= 0  # greedy
        assert token["token"] == token["top_logprobs"][0]["token"]
    pieces = [c["logprobs"] for e in streamed(app, logprobs=True, top_logprobs=3, temperature=0)
              for c in e["choices"]]  # fmt: skip
    told = [token for piece in pieces if piece for token in piece["content"]]
    assert [token["token"] for token in told] == [token["token"] for token in content]
    assert [t["logprob"] for t in told] == pytest.approx([t["logprob"] for t in content], abs=1e-4)
    assert chat(app)["choices"][0]["logprobs"] is None
    assert chat(app, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_completion_tells_log_probabilities_in_its_own_shape(app: FastAPI) -> None:
    [choice] = text(app, logprobs=2, temperature=0)["choices"]
    told = choice["logprobs"]
    assert len({len(column) for column in told.values()}) == 1
    assert all(len(top) <= 2 for top in told["top_logprobs"])
    assert told["text_offset"][0] == 0
    ends = [at + len(token) for at, token in zip(told["text_offset"], told["tokens"], strict=True)]
    assert told["text_offset"][1:] == ends[:-1]
    assert text(app)["choices"][0]["logprobs"] is None


def test_top_k_1_takes_the_likeliest_at_any_temperature(app: FastAPI) -> None:
    greedy = text(app, temperature=0)["choices"][0]["text"]
    assert text(app, temperature=2, top_k=1)["choices"][0]["text"] == greedy
    assert text(app, temperature=2, top_k=10**9)["choices"] == text(app, temperature=2)["choices"]


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_an_answer_obeys_its_schema(app: FastAPI, temperature: float) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "lights", "schema": SCHEMA}}
    reply = chat(app, response_format=shape, max_tokens=150, temperature=temperature, n=3)
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


def test_obeying_and_free_requests_share_a_batch(app: FastAPI) -> None:
    """And a request without a schema gives what it gives alone."""
    shape = {"type": "json_schema", "json_schema": {"name": "lights", "schema": SCHEMA}}
    bound = {**TEXT, "response_format": shape, "max_tokens": 150}
    responses = ask(app, "/v1/completions", TEXT, bound, TEXT, bound)
    texts = [response.json()["choices"][0]["text"] for response in responses]
    assert texts[0] == texts[2] == text(app)["choices"][0]["text"]
    assert texts[1] == texts[3]
    jsonschema.validate(json.loads(texts[1]), SCHEMA)


def test_any_json_is_an_object(app: FastAPI) -> None:
    """A random model may write one without end; as far as it came, it is JSON."""
    reply = text(app, response_format={"type": "json_object"}, max_tokens=150, temperature=0)
    [choice] = reply["choices"]
    assert choice["text"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["text"]), dict)


def test_an_answer_tells_its_routing_to_those_who_ask(app: FastAPI) -> None:
    assert "moetune" not in chat(app)
    reply = chat(app, moetune={"routing": "summary"})
    routing = reply["moetune"]["routing"]
    read = reply["usage"]["total_tokens"] - 1
    assert routing["tokens"] == read
    assert [layer["layer"] for layer in routing["layers"]] == ["layers.0.mlp", "layers.1.mlp"]
    assert all(sum(layer["load"]) == 2 * read for layer in routing["layers"])
    assert routing["by_token"] == []
    reply = chat(app, moetune={"routing": "tokens"})
    routing = reply["moetune"]["routing"]
    assert len(routing["by_token"]) == len(routing["texts"]) == read
    assert "".join(routing["texts"]).startswith("<|im_start|>user\nhello<|im_end|>")
    answer = "".join(routing["texts"][reply["usage"]["prompt_tokens"] :])
    shown = re.sub(r"<\|\w+\|>", "", answer)  # special tokens are no part of the content
    assert reply["choices"][0]["message"]["content"].startswith(shown)
    [*_, last] = streamed(app, moetune={"routing": "summary"})
    assert last["moetune"]["routing"]["tokens"] == read
    assert "moetune" not in chat(app, model="tiny-llama", moetune={"routing": "tokens"})
