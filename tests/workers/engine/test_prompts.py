"""What is known of a prompt before it is encoded, and that the event loop goes on meanwhile."""

import asyncio
import copy
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.engine.prompts import LONG, PART, Prompts
from workers.engine.request import Chat, RequestError, TextRequest

Encode = Callable[[TextRequest], tuple[int, ...]]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def indenting(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """With a template that writes JSON as Llama 3.1's does."""
    other = copy.copy(tokenizer)
    other.chat_template = (
        "{% for t in tools or [] %}{{ t | tojson(indent=4) }}{% endfor %}"
        "{% for m in messages %}{{ m | tojson(indent=4) }}{% endfor %}"
    )
    return other


def never(request: TextRequest) -> tuple[int, ...]:
    raise AssertionError("all of the prompt was encoded")


def asked(prompt: Any, tenant: str = "") -> TextRequest:
    return TextRequest(prompt, None, 0, tenant=tenant)


def chat(*contents: str) -> Chat:
    return Chat(tuple({"role": "user", "content": content} for content in contents))


def called(number: str = "", **function: Any) -> Chat:
    call = {"id": number, "type": "function", "function": {"name": "f"} | function}
    return Chat(({"role": "assistant", "content": "", "tool_calls": [call]},))


def nested(levels: int, value: Any) -> Any:
    return nested(levels - 1, [value]) if levels else value


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.mark.parametrize(
    ("prompt", "allowed"),
    [
        ("x" * (LONG * 100 + 1), 100),
        ("x" * (LONG * 2000), 2000),  # so many characters could be few tokens
        (chat("x" * (LONG * 100 + 1)), 100),
        (chat(*(640 * ["x" * 100])), 2000),
        (chat(*(101 * ["x"])), 100),
        (replace(chat("x"), tools=({"function": {"name": "x" * (LONG * 100)}},)), 100),
        (replace(chat("x"), tools=100 * ({"function": {"name": "x"}},)), 100),
        (called(arguments={"a": "x" * (LONG * 100)}), 100),
    ],
    ids=[
        *("characters", "parts", "a turn's characters", "turns' parts", "turns"),
        *("tools' characters", "tools", "calls"),
    ],
)
def test_what_is_far_too_long_is_refused_before_all_of_it_is_encoded(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, allowed: int
) -> None:
    request = asked(prompt)
    with pytest.raises(RequestError, match=f"the {allowed} tokens") as caught:
        run(Prompts(tokenizer, never).ids(request, allowed))
    assert (caught.value.status, caught.value.param) == (400, request.param)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("value", [0, True, None, [], 1.5], ids=str)
def test_what_is_no_text_and_its_indentation_are_tokens_too(
    tokenizer: PreTrainedTokenizerBase, value: Any
) -> None:
    many = nested(50, [value] * 1000)
    tools = ({"type": "function", "function": {"name": "f", "x": many}},)
    for prompt in (replace(chat("x"), tools=tools), called(arguments={"x": many})):
        prompts = Prompts(indenting(tokenizer), never)
        with pytest.raises(RequestError, match="the 2000 tokens"):
            run(prompts.ids(asked(prompt), 2000))


def test_what_a_template_may_leave_out_makes_no_prompt_too_long(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    def encode(request: TextRequest) -> tuple[int, ...]:
        return (7,)

    function = {"name": "f", "description": "x" * (LONG * 100)}
    tools = ({"type": "function", "function": function},)
    for prompt in (replace(chat("x"), tools=tools), called("x" * (LONG * 100))):
        assert run(Prompts(tokenizer, encode).ids(asked(prompt), 50)) == (7,)


@pytest.mark.parametrize("length", [1, PART - 1, PART, PART + 1, 3 * PART + 7])
def test_a_prompt_that_just_fits_is_encoded(
    tokenizer: PreTrainedTokenizerBase, length: int
) -> None:
    def encode(request: TextRequest) -> tuple[int, ...]:
        return tuple(tokenizer(request.prompt)["input_ids"])

    ids = run(Prompts(tokenizer, encode).ids(asked("é" * length), 2 * length))
    assert len(ids) == 2 * length


def test_what_a_template_refuses_is_left_to_who_encodes(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    def encode(request: TextRequest) -> tuple[int, ...]:
        raise RequestError("said by the encoder")

    wrong = Chat(({"role": "user", "text": "x" * (PART + 1)},))
    with pytest.raises(RequestError, match="said by the encoder"):
        run(Prompts(tokenizer, encode).ids(asked(wrong), PART))


def test_the_event_loop_goes_on_and_another_tenants_prompt_is_next(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    released, order = threading.Event(), []

    def encode(request: TextRequest) -> tuple[int, ...]:
        assert released.wait(30)
        order.append(request.tenant)
        return (7,)

    async def ask() -> None:
        prompts = Prompts(tokenizer, encode)
        many = [asyncio.create_task(prompts.ids(asked("x", "many"), 9)) for _ in range(5)]
        await asyncio.sleep(0)
        one = asyncio.create_task(prompts.ids(asked("x", "one"), 9))
        await asyncio.sleep(0.1)
        released.set()  # nobody could, were the loop waiting
        assert await asyncio.gather(one, *many) == [(7,)] * 6

    run(ask())
    assert order.index("one") <= 1
