"""Schemas that are refused: those that nothing can obey, and those that cost too much to find out
about."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.engine.request import Limits, RequestError, SchemaLimits
from workers.engine.structured_output.schemas import Schemas

END = 2
FINE = json.dumps({"type": "boolean"})
MULTIPLE = {"type": "integer", "multipleOf": 99_999_999}
PATTERNS = {"type": "string", "allOf": [{"pattern": f".*{chr(97 + n)}.*.*"} for n in range(20)]}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@asynccontextmanager
async def opened(tokenizer: PreTrainedTokenizerBase, **limits: Any) -> AsyncIterator[Schemas]:
    made = Schemas(tokenizer, 300, [END], Limits(schemas=SchemaLimits(**limits)))
    try:
        yield made
    finally:
        made.close()


def run(coroutine: Coroutine[Any, Any, Any], seconds: float = 120) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


async def refusal(schemas: Schemas, schema: object, tenant: str = "") -> RequestError:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    with pytest.raises(RequestError, match=r"^[^\n]*$") as caught:
        await schemas.schema(text, tenant)
    assert caught.value.param == "response_format"
    return caught.value


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "[]",
        "true",
        "9" * 5000,
        {"type": "nonsense"},
        {"$ref": "http://127.0.0.1/schema"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "string", "pattern": "(("},
        {"type": "string", "minLength": 3, "maxLength": 1},
        {"not": {"type": "string"}},
    ],
    ids=lambda schema: str(schema)[:60],
)
def test_a_schema_that_nothing_can_obey_is_refused(
    tokenizer: PreTrainedTokenizerBase, schema: Any
) -> None:
    async def ask() -> None:
        async with opened(tokenizer) as schemas:
            error = await refusal(schemas, schema)
            assert (error.status, error.code) == (400, "invalid_schema")
            assert str(error).startswith("response_format: ")

    run(ask())


@pytest.mark.parametrize("schema", [MULTIPLE, PATTERNS], ids=["multipleOf", "allOf"])
def test_what_takes_too_long_to_compile_is_refused_and_the_next_schema_is_not(
    tokenizer: PreTrainedTokenizerBase, schema: Any
) -> None:
    async def ask() -> None:
        async with opened(tokenizer) as schemas:
            error = await refusal(schemas, schema)
            assert (error.status, error.code) == (400, "invalid_schema")
            assert "takes more than" in str(error)
            await schemas.schema(FINE)

    run(ask())


def test_what_takes_too_much_memory_to_compile_is_refused(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    async def ask() -> None:
        async with opened(tokenizer, seconds=30, max_memory=2**25) as schemas:
            error = await refusal(schemas, PATTERNS)
            assert "takes more than 32 MiB of memory" in str(error)
            await schemas.schema(FINE)

    run(ask())


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"description": "é" * 600}, "more than 1000 bytes"),
        ("[" * 9 + "]" * 9, "more than 8 values deep"),
        ("[" * 400 + "]" * 400, "more than 8 values deep"),
        ({"enum": list(range(50))}, "more than 40 values"),
    ],
    ids=["bytes", "depth", "brackets", "values"],
)
def test_what_is_too_large_is_refused_and_costs_nothing(
    tokenizer: PreTrainedTokenizerBase, schema: Any, said: str
) -> None:
    async def ask() -> None:
        # None of them is ever tried out: that would take longer than it may.
        limits = {"max_bytes": 1000, "max_depth": 8, "max_values": 40, "seconds": 1e-6}
        async with opened(tokenizer, **limits) as schemas:
            error = await refusal(schemas, schema)
            assert (error.status, error.code) == (400, "invalid_schema")
            assert said in str(error)

    run(ask())


def test_brackets_without_an_end_are_one_line(tokenizer: PreTrainedTokenizerBase) -> None:
    async def ask() -> None:
        async with opened(tokenizer, max_bytes=10**6) as schemas:
            error = await refusal(schemas, "[" * 100_000)
            assert (error.status, error.code) == (400, "invalid_schema")

    run(ask())


def test_a_verdict_is_remembered_and_a_tenant_who_asks_for_more_waits(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    async def ask() -> None:
        async with opened(tokenizer) as schemas:
            for _ in range(100):  # the same one is tried out once
                assert (await refusal(schemas, MULTIPLE, "greedy")).status == 400
            codes: list[str | None] = []
            while "rate_limit_exceeded" not in codes and len(codes) < 20:
                other = MULTIPLE | {"multipleOf": 99_999_998 - len(codes)}
                codes.append((await refusal(schemas, other, "greedy")).code)
            assert codes[0] == "invalid_schema"
            assert codes[-1] == "rate_limit_exceeded"
            await schemas.schema(FINE, "another")

    run(ask(), 300)


def test_who_goes_away_frees_the_place(tokenizer: PreTrainedTokenizerBase) -> None:
    async def ask() -> None:
        async with opened(tokenizer, seconds=600) as schemas:
            await schemas.schema(FINE)  # so that the process is there
            for number in range(3):
                schema = json.dumps(MULTIPLE | {"multipleOf": 99_999_999 - number})
                asking = asyncio.create_task(schemas.schema(schema, "leaver"))
                await asyncio.sleep(0.2)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await asyncio.wait_for(schemas.schema('{"type": "null"}', "another"), 60)

    run(ask())


def test_requests_for_one_schema_at_once_share_what_is_compiled(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    async def ask() -> None:
        async with opened(tokenizer) as schemas:
            # Kept by nobody but the answers: it holds more than is kept.
            schema = json.dumps({"type": "integer", "multipleOf": 9999})
            made = await asyncio.gather(*(schemas.schema(schema, "n=8") for _ in range(8)))
            assert len({id(one._compiled) for one in made}) == 1
            assert all(int(one.allowed().sum()) == 11 for one in made)  # -0123456789

    run(ask())


def test_the_other_process_is_told_no_secret_and_is_replaced_when_it_dies(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOETUNE_API_KEY", "a-secret")

    async def ask() -> None:
        async with opened(tokenizer) as schemas:
            await schemas.schema(FINE)
            assert schemas._probe._running is not None
            process, _ = schemas._probe._running
            assert b"a-secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()
            os.kill(process.pid, 9)
            process.wait()
            with pytest.raises(RequestError, match="could not be tried") as caught:
                await schemas.schema('{"type": "null"}')
            assert caught.value.status == 503
            await schemas.schema('{"type": "null"}')  # was not held against the schema

    run(ask())
