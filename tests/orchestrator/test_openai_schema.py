"""Bodies that are wrong all over: the first wrong thing is enough, and no other is looked at."""

import asyncio
import json
import threading
from typing import Any

import pytest
from pydantic import ValidationError, model_validator

from orchestrator.openai_schema import LARGE, ChatBody, CompletionBody, parse, parsed
from workers.engine.request import RequestError
from workers.engine.turns import Turns

MANY = 10_000
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
