"""What bodies may say: values that ask for nothing, several prompts; what is refused, and at what
cost: of a body that is wrong all over the first wrong thing is enough."""

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError, model_validator

from orchestrator.gateway.body import LARGE, parse, parsed
from orchestrator.openai import schema as schema_module
from orchestrator.openai import tools as tools_module
from orchestrator.openai.schema import ChatBody, CompletionBase, CompletionBody
from orchestrator.openai.tools import NESTED
from tests.orchestrator import recorded_bodies
from workers.config.data import DataSpec
from workers.data.rows import training_rows
from workers.engine.request import Chat, RequestError
from workers.engine.turns import Turns

MANY = 10_000
BOTH = {
    "frequency_penalty": ([0, 0.0, -0.0, None], [0.5, -1, "0", False]),
    "presence_penalty": ([0, 0.0], [2]),
    "logit_bias": ([{}, {"50256": 0, "7": 0.0, "8": None}], [{"50256": 5}, [], "no"]),
}
"""Fields, with values that ask for nothing, and values that are refused by the field's name."""
CHATS = BOTH | {
    "store": ([False], [True, 0]),
    "metadata": ([{}, {"trace": "7", "none": None}], [{"trace": 7}, []]),
    "tools": ([[], None], [[{"type": "function", "function": {}}], {}, [{"type": "web_search"}]]),
    "tool_choice": (["none", "auto"], ["required", {"type": "function"}]),
    "parallel_tool_calls": ([True, False], ["yes"]),
    "functions": ([[]], [[{"name": "f"}]]),
    "function_call": (["none", "auto"], [{"name": "f"}]),
    "modalities": ([["text"]], [["text", "audio"], "text"]),
    "reasoning_effort": (["none"], ["high"]),
    "verbosity": (["medium"], ["low"]),
    "service_tier": (["auto", "default"], ["priority"]),
    "prompt_cache_key": (["any"], [1]),
    "prompt_cache_retention": (["in_memory"], ["24h"]),
    "safety_identifier": (["anybody"], [1]),
    "audio": ([None], [{"voice": "alloy"}]),
    "prediction": ([None], [{"type": "content", "content": "x"}]),
    "web_search_options": ([None], [{}]),
    "top_logprobs": ([0], [21]),
}
TEXTS = BOTH | {
    "echo": ([False], [True]),
    "suffix": (["", None], ["the end"]),
    "best_of": ([1, 1.0], [2, 0]),
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": null}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TURNS = {
    "name": ([""], ["Ann"]),
    "refusal": (["", None], ["no"]),
    "tool_calls": ([[], None], [[CALL]]),
    "tool_call_id": (["", None], ["c"]),
    "reasoning_content": (["", None], ["hm"]),
    "annotations": ([[]], [[{"type": "url_citation"}]]),
    "function_call": ([None], [{"name": "f"}]),
    "audio": ([None], [{"id": "1"}]),
}
TURN = {"role": "user", "content": "x"}


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [TURN]} | fields).encode()


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (ChatBody, chat(messages=[1] * MANY), "messages.0: "),
        (ChatBody, chat(messages=[{"role": "nobody"}] * MANY), "messages.0.role: "),
        (ChatBody, chat(messages=[TURN] * MANY), "messages: List should have at most 4096 "),
        (ChatBody, chat(**{f"f{n}": 1 for n in range(MANY)}), "f0 is not supported"),
        (ChatBody, chat(messages=[TURN | {f"f{n}": 1 for n in range(MANY)}]), "messages.0.f0 is "),
        (
            ChatBody,
            chat(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * MANY}]),
            "messages.0.content: at most 4096 parts",
        ),
        (CompletionBody, json.dumps({"model": "m", "prompt": [1, *["a"] * MANY]}).encode(), ""),
    ],
    ids=["messages", "fields of messages", "many", "fields", "fields of one", "parts", "ids"],
)
def test_one_wrong_thing_is_enough(kind: type[ChatBody], body: bytes, said: str) -> None:
    with pytest.raises(ValidationError) as every:
        kind.model_validate_json(body)
    assert every.value.error_count() <= 3  # a role missing, a content missing; a union's members
    with pytest.raises(RequestError) as caught:
        parse(kind, body)
    assert str(caught.value).startswith(said)


def text(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "x"} | fields).encode()


def of_each(table: dict[str, tuple[list[Any], list[Any]]], index: int) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values[index]]


@pytest.mark.parametrize(("name", "value"), of_each(CHATS, 0))
def test_a_chats_values_that_ask_for_nothing_change_nothing(name: str, value: Any) -> None:
    assert asks(ChatBody, chat(**{name: value}, seed=1)) == asks(ChatBody, chat(seed=1))


@pytest.mark.parametrize(("name", "value"), of_each(TEXTS, 0))
def test_a_texts_values_that_ask_for_nothing_change_nothing(name: str, value: Any) -> None:
    body = text(**{name: value}, seed=1)
    assert asks(CompletionBody, body) == asks(CompletionBody, text(seed=1))


@pytest.mark.parametrize(("name", "value"), of_each(TURNS, 0))
def test_a_turns_values_that_ask_for_nothing_change_nothing(name: str, value: Any) -> None:
    assert asks(ChatBody, chat(messages=[TURN | {name: value}], seed=1)) == asks(
        ChatBody, chat(seed=1)
    )


def asks(kind: type[CompletionBase], body: bytes) -> Any:
    """What the engine is asked; but for the user, whose name changes no answer."""
    [request] = parse(kind, body).requests(None)
    return replace(request, user="")


def test_values_that_would_change_an_answer_are_refused_by_name() -> None:
    bodies = [(ChatBody, chat(**{n: v}), n) for n, v in of_each(CHATS, 1)]
    bodies += [(CompletionBody, text(**{n: v}), n) for n, v in of_each(TEXTS, 1)]
    bodies += [
        (ChatBody, chat(messages=[TURN | {n: v}]), f"messages.0.{n}") for n, v in of_each(TURNS, 1)
    ]
    for kind, body, name in bodies:
        with pytest.raises(RequestError) as caught:
            parse(kind, body)
        assert (caught.value.param, name in str(caught.value)) == (name, True), body


def test_a_chat_with_tools_is_what_training_makes_of_it(tmp_path: Path) -> None:
    turns = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}] * 2},
        TURN,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "c", "name": "f"},
    ]
    path = tmp_path / "rows.jsonl"
    answer = {"role": "assistant", "content": "a"}
    path.write_text(json.dumps({"messages": [*turns, answer], "tools": [TOOL]}))
    [row] = training_rows(DataSpec(train=str(path), validation=str(path)))
    for choice in ({}, {"tool_choice": "auto"}):
        request = asks(ChatBody, chat(messages=turns, tools=[TOOL], **choice))
        assert request.prompt == Chat(row.messages, row.tools)
    unshown = asks(ChatBody, chat(messages=turns, tools=[TOOL], tool_choice="none"))
    assert unshown.prompt == Chat(row.messages)


@pytest.mark.parametrize(
    ("turn", "param", "said"),
    [
        ({"role": "assistant"}, "content", "is missing"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content", "is missing"),
        (
            {
                "role": "assistant",
                "tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}],
            },
            "tool_calls.0.function.arguments",
            "arguments must be JSON, not '{'",
        ),
        (
            {"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]},
            "tool_calls.0.type",
            "Input should be 'function'",
        ),
        (
            {"role": "assistant", "content": "", "reasoning": "a", "thinking": "b"},
            None,
            "are one; give one of them",
        ),
    ],
)
def test_a_turn_that_cannot_be_is_named(turn: Any, param: str | None, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(ChatBody, chat(messages=[turn]))
    assert caught.value.param == (f"messages.0.{param}" if param else "messages.0")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [{"properties": {"word " * 1000: {}}}, {"enum": [0] * 2000}, {"const": "word " * 1000}],
    ids=["names", "numbers", "texts"],
)
def test_what_tools_take_is_set_aside_too(schema: Any) -> None:
    plain = parse(ChatBody, chat()).likely_tokens(10)[0]
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert parse(ChatBody, chat(tools=[tool])).likely_tokens(10)[0] > plain + 1000
    call = {"function": {"name": "f", "arguments": json.dumps(schema)}}
    turns = [{"role": "assistant", "tool_calls": [call]}]
    assert parse(ChatBody, chat(messages=turns)).likely_tokens(10)[0] > 1000


def nested(levels: int, value: Any) -> Any:
    return nested(levels - 1, [value]) if levels else value


@pytest.mark.parametrize(
    "value", [[0] * (NESTED // 2), nested(50, [0] * (NESTED // 50))], ids=["many", "deep"]
)
def test_values_that_a_template_would_indent_without_end_are_refused(value: Any) -> None:
    function = {"name": "f", "arguments": {"x": value}}
    turn = {"role": "assistant", "tool_calls": [{"function": function}]}
    bodies = {
        "tools": chat(tools=[{"type": "function", "function": {"name": "f", "x": value}}]),
        "messages": chat(messages=[turn]),
    }
    for name, body in bodies.items():
        with pytest.raises(RequestError, match=f"{name}: at most {NESTED} values") as caught:
            parse(ChatBody, body)
        assert caught.value.param == name


def test_calls_of_all_messages_count_together() -> None:
    function = {"name": "f", "arguments": {"x": [0] * (NESTED // 20)}}
    turn = {"role": "assistant", "tool_calls": [{"function": function}]}
    parse(ChatBody, chat(messages=[turn]))
    with pytest.raises(RequestError, match="values are supported"):
        parse(ChatBody, chat(messages=[turn] * 20))


def test_a_read_body_has_been_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of it on the event loop costs no more than its few fields."""
    body = parse(ChatBody, chat(tools=[TOOL]))

    def again(*args: object) -> None:
        raise AssertionError("the body is gone through again")

    for module, name in ((tools_module, "tool_schemas"), (schema_module, "_likely_tokens")):
        monkeypatch.setattr(module, name, again)
    assert body.likely_tokens(10)
    assert body.requests(None)


def test_as_many_as_are_told_is_no_choice() -> None:
    assert parse(CompletionBody, text(n=2, best_of=2)).answers == 2
    with pytest.raises(RequestError, match=r"best_of: only its default"):
        parse(CompletionBody, text(n=2, best_of=3))


def test_stream_options_that_ask_for_nothing_need_no_stream() -> None:
    for options in ({}, {"include_usage": False}, {"include_obfuscation": False}):
        assert not parse(ChatBody, chat(stream_options=options)).include_usage
    with pytest.raises(RequestError) as caught:
        parse(ChatBody, chat(stream=True, stream_options={"include_obfuscation": True}))
    assert caught.value.param == "stream_options.include_obfuscation"


def test_a_limit_under_both_of_its_names_is_one() -> None:
    body = chat(max_tokens=5, max_completion_tokens=5.0)
    assert asks(ChatBody, body).max_tokens == 5


def test_a_number_without_a_fraction_is_whole() -> None:
    fields = {"max_tokens": 16.0, "n": 2.0, "seed": -7.0, "top_k": 4.0, "logprobs": 3.0}
    body = parse(CompletionBody, text(**fields, prompt=[5.0, 6]))
    [request] = body.requests(None)
    asked = (request.max_tokens, body.n, request.seed, request.top_k, request.logprobs)
    assert asked == (16, 2, -7, 4, 3)
    assert all(type(value) is int for value in asked)
    assert request.prompt == (5, 6)
    for field, value in (("max_tokens", 16.5), ("n", 1e300), ("stream", 1.0), ("model", 3.0)):
        with pytest.raises(RequestError) as caught:
            parse(CompletionBody, text(**{field: value}))
        assert caught.value.param == field


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("x", ["x"]),
        (["x"], ["x"]),
        (["x", "y"], ["x", "y"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
        (["x", [4.0]], ["x", (4,)]),
        (["x"] * 128, ["x"] * 128),
    ],
)
def test_a_prompt_may_be_several(prompt: Any, wanted: list[Any]) -> None:
    body = parse(CompletionBody, text(prompt=prompt, n=2, seed=3))
    requests = body.requests(None)
    assert [request.prompt for request in requests] == wanted
    assert {request.seed for request in requests} == {3}
    assert body.answers == 2 * len(wanted)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([True], "prompt.0"),
        ([5, "x"], "prompt.1"),
        (["x", 5], "prompt.1"),
        ([[1], [2, "x"]], "prompt.1.1"),
        ([["x"]], "prompt.0.0"),
        ([None], "prompt.0"),
        ({}, "prompt"),
        (["x"] * 129, "prompt"),
    ],
)
def test_what_is_no_prompt_is_named(prompt: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(CompletionBody, text(prompt=prompt))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("kind", "body"),
    [(ChatBody, body) for body in recorded_bodies.CHATS.values()]
    + [(CompletionBody, body) for body in recorded_bodies.TEXTS.values()],
    ids=[*recorded_bodies.CHATS, *recorded_bodies.TEXTS],
)
def test_what_clients_send_is_as_the_description_says(kind: Any, body: Any) -> None:
    """So their makers could tell without asking us."""
    parse(kind, json.dumps(body).encode())
    jsonschema.validate(body, kind.model_json_schema())


def test_a_large_body_is_read_beside_the_event_loop() -> None:
    released = threading.Event()

    class Slow(CompletionBody):
        @model_validator(mode="before")
        @classmethod
        def _wait(cls, values: Any) -> Any:
            assert released.wait(30)
            return values

    async def read() -> CompletionBody:
        body = {"model": "m", "prompt": "x" * LARGE}
        reading = asyncio.create_task(parsed(Slow, json.dumps(body).encode(), Turns(1), ""))
        await asyncio.sleep(0.1)
        released.set()  # nobody could, were the loop waiting
        return await reading

    assert len(str(asyncio.run(read()).prompt)) == LARGE
