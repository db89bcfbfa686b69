"""Which tokens a JSON schema allows."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.engine.request import Limits, RequestError
from workers.engine.structured_output.grammar import Vocabulary
from workers.engine.structured_output.schema import Schema
from workers.engine.structured_output.schemas import Schemas

END = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def schemas(tokenizer: PreTrainedTokenizerBase) -> Iterator[Schemas]:
    schemas = Schemas(tokenizer, 300, [END], Limits())  # the model has rows that no token has
    yield schemas
    schemas.close()


def following(schema: Schema, tokenizer: PreTrainedTokenizerBase, text: str) -> set[str]:
    """What may come behind a text."""
    schema.restart(tokenizer.encode(text))
    allowed = schema.allowed()
    assert len(allowed) == 300
    assert not allowed[len(tokenizer) :].any()
    ids = allowed.nonzero().flatten().tolist()
    return {"end" if token == END else tokenizer.decode([token]) for token in ids}


def test_only_what_leads_to_an_answer_may_come(
    schemas: Schemas, tokenizer: PreTrainedTokenizerBase
) -> None:
    shape = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    asked = schemas.schema(json.dumps(shape | {"additionalProperties": False}))
    schema = asyncio.run(asked)
    assert following(schema, tokenizer, "") == {"{"}
    assert following(schema, tokenizer, '{"') == {"o"}
    assert following(schema, tokenizer, '{"on": ') == {"t", "f"}
    assert following(schema, tokenizer, '{"on": true') == {"}"}
    assert following(schema, tokenizer, '{"on": true}') == {"end"}
    assert following(schema, tokenizer, '{"on": maybe') == set()
    assert schema.error
    assert "\n" not in schema.error
    assert following(schema, tokenizer, "") == {"{"}  # another answer begins anew


def test_a_tokenizer_of_another_kind_is_tried_once_and_the_refusal_costs_nothing(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find out takes a second in which no other thread runs."""
    tried = []

    def made(self: Vocabulary) -> NoReturn:
        tried.append(self)
        raise ValueError("no such kind")

    monkeypatch.setattr(Vocabulary, "made", made)
    schemas = Schemas(tokenizer, 300, [END], Limits())
    try:
        for _ in range(3):
            with pytest.raises(RequestError, match=r"with this base's tokenizer: no such kind"):
                asyncio.run(schemas.schema('{"type": "boolean"}'))
    finally:
        schemas.close()
    assert len(tried) == 1
