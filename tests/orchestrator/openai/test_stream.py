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

from orchestrator.gateway.app import create_app
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from tests.orchestrator import recorded_bodies
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

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
    limits = Limits(max_batch_tokens=64, cache_tokens=1024, max_new_tokens=256, max_queued=8)
    engine = ContinuousEngine(base, limits)
    text = TextEngine(engine, base.tokenizer)
    catalog = ModelCatalog(registry, "tiny-llama", text.load)
    asyncio.run(catalog.refresh())
    yield create_app(text, catalog)
    engine.close()


def ask(app: FastAPI, path: str, *bodies: dict[str, Any]) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as web:
            return await asyncio.gather(*(web.post(path, json=body) for body in bodies))

    return asyncio.run(asyncio.wait_for(main(), 60))


def answered(app: FastAPI, path: str, body: dict[str, Any]) -> Any:
    """The reply to a body that must be taken; of a stream its pieces."""
    [response] = ask(app, path, body)
    assert response.is_success, response.text
    return pieces(response) if body.get("stream") else response.json()


def chat(app: FastAPI, **fields: Any) -> Any:
    reply = answered(app, "/v1/chat/completions", {**CHAT, **fields})
    ChatCompletion.model_validate(reply)
    return reply


def text(app: FastAPI, **fields: Any) -> Any:
    reply = answered(app, "/v1/completions", {**TEXT, **fields})
    Completion.model_validate(reply)
    return reply


def streamed(app: FastAPI, **fields: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = answered(
        app, "/v1/chat/completions", {**CHAT, "stream": True, **fields}
    )
    for event in events:
        ChatCompletionChunk.model_validate(event)
    return events


def streamed_text(app: FastAPI, **fields: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = answered(
        app, "/v1/completions", {**TEXT, "stream": True, **fields}
    )
    return events


def pieces(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def of_index(events: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    return [c for event in events for c in event["choices"] if c["index"] == index]


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
        own = of_index(events, index)
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in own) == whole
        assert [bool(c["finish_reason"]) for c in own] == [False] * (len(own) - 1) + [True]


def test_several_prompts_are_answered_as_each_alone_would_be(app: FastAPI) -> None:
    prompts: list[Any] = ["hello", [72, 105], "hello", *["x"] * 9]  # more than run at a time
    both = text(app, prompt=prompts, n=2)
    alone = [text(app, prompt=one, n=2) for one in prompts[:4]]
    assert [choice["index"] for choice in both["choices"]] == list(range(24))
    texts = [choice["text"] for choice in both["choices"]]
    assert texts[:8] == [choice["text"] for one in alone for choice in one["choices"]]
    assert len({*texts[:8]}) == 6
    assert both["usage"]["prompt_tokens"] == 5 + 2 + 5 + 9
    events = streamed_text(app, prompt=prompts, n=2, stream_options={"include_usage": True})
    assert events[-1]["usage"] == both["usage"]
    for index, whole in enumerate(texts):
        own = of_index(events, index)
        assert "".join(choice["text"] for choice in own) == whole
        assert own[-1]["finish_reason"]


@pytest.mark.parametrize("name", [*recorded_bodies.CHATS])
def test_what_clients_chat_with_is_answered(app: FastAPI, name: str) -> None:
    body = recorded_bodies.CHATS[name]
    reply = answered(app, "/v1/chat/completions", body)
    assert reply if body.get("stream") else ChatCompletion.model_validate(reply)


@pytest.mark.parametrize("name", [*recorded_bodies.TEXTS])
def test_what_clients_have_completed_is_answered(app: FastAPI, name: str) -> None:
    body = recorded_bodies.TEXTS[name]
    reply = answered(app, "/v1/completions", body)
    if body.get("stream"):
        assert {choice["index"] for event in reply for choice in event["choices"]} == {0, 1}
    else:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        assert len(Completion.model_validate(reply).choices) == len(prompts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("bad", "param", "why"),
    [
        ("", "prompt.12", "the prompt is empty"),
        ([5, 100_000], "prompt.12", "token id 100000 is not in"),
        ("x" * 505, "max_tokens", "the prompt has 505 tokens and max_tokens is 16"),
        ("x" * 4000, "prompt.12", "the prompt has 4000 tokens, but at most"),
    ],
    ids=["empty", "no-token", "no-room", "too-long"],
)
def test_one_bad_prompt_among_many_is_refused_before_the_first_answer(
    app: FastAPI, stream: bool, bad: Any, param: str, why: str
) -> None:
    """It comes after those that are answered at a time: a stream said 200 before it was seen."""
    body = {**TEXT, "prompt": [*["hello"] * 12, bad, "hello"], "stream": stream}
    [response] = ask(app, "/v1/completions", body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"prompt.12: {why}")
    assert "\n" not in error["message"]


def test_one_choice_that_is_refused_refuses_all(app: FastAPI) -> None:
    [response] = ask(app, "/v1/completions", {**TEXT, "n": 3, "max_tokens": 257})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")


def test_a_chat_tells_log_probabilities(app: FastAPI) -> None:
    reply = chat(app, logprobs=True, top_logprobs=3, temperature=0)
    [choice] = reply["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == reply["usage"]["completion_tokens"] - (choice["finish_reason"] == "stop")
    assert raw_of(content).decode(errors="replace") == choice["message"]["content"]
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
    assert text(app)["choices"][0]["logprobs"] is None


def in_place(told: dict[str, Any], text: str) -> bool:
    """Whether each token stands where it says. Half a character is not looked for, nor is a special
    token, which is none of the text."""
    placed = zip(told["tokens"], told["text_offset"], strict=True)
    return all(
        text.startswith(token, at) for token, at in placed if not re.search(r"�|<\|\w+\|>", token)
    )


def test_log_probabilities_index_the_text_whole_and_streamed(app: FastAPI) -> None:
    """A random model's answers: characters over several tokens, and bytes that are none."""
    for seed in range(6):
        fields = {"logprobs": 1, "seed": seed, "temperature": 1.5, "max_tokens": 40}
        [choice] = text(app, **fields)["choices"]
        told, shown = choice["logprobs"], choice["text"]
        assert in_place(told, shown)
        stop = shown[len(shown) // 2]
        [cut] = text(app, **fields, stop=[stop])["choices"]
        before = [at for at in told["text_offset"] if at < shown.index(stop)]
        assert cut["text"] == shown[: shown.index(stop)]
        assert (cut["logprobs"] or {"text_offset": []})["text_offset"] == before
        parts = [c["logprobs"] for e in streamed_text(app, **fields, stop=[stop])
                 for c in e["choices"] if c["logprobs"]]  # fmt: skip
        assert [at for part in parts for at in part["text_offset"]] == before


def test_characters_of_several_tokens_are_told_whole_and_streamed(app: FastAPI) -> None:
    written = '"grüß ✓ 日本 STOP"'
    shape = {"name": "it", "schema": {"const": json.loads(written)}}
    fields = {
        "response_format": {"type": "json_schema", "json_schema": shape},
        "stop": [" STOP"],
        "max_tokens": 60,
    }
    shown = written.removesuffix(' STOP"')
    [choice] = text(app, **fields, logprobs=0)["choices"]
    assert choice["text"] == shown
    places = [at for at, character in enumerate(shown) for _ in character.encode()]
    assert choice["logprobs"]["text_offset"] == places
    [choice] = chat(app, **fields, logprobs=True)["choices"]
    assert raw_of(choice["logprobs"]["content"]) == shown.encode()
    events = streamed(app, **fields, logprobs=True)
    told = [c["logprobs"]["content"] for e in events for c in e["choices"] if c["logprobs"]]
    assert raw_of([token for part in told for token in part]) == shown.encode()
    parts = [c["logprobs"] for e in streamed_text(app, **fields, logprobs=0)
             for c in e["choices"] if c["logprobs"]]  # fmt: skip
    assert [at for part in parts for at in part["text_offset"]] == places


def raw_of(content: list[dict[str, Any]]) -> bytes:
    return bytes(byte for token in content for byte in token["bytes"])


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
