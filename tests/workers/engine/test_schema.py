"""Which tokens a JSON schema allows, and which schemas are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.engine.request import RequestError
from workers.engine.schema import Schema, Schemas

END = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def schemas(tokenizer: PreTrainedTokenizerBase) -> Schemas:
    return Schemas(tokenizer, columns=300, stops=[END])  # the model has rows that no token has


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
    schema = schemas.schema(json.dumps(shape | {"additionalProperties": False}))
    assert following(schema, tokenizer, "") == {"{"}
    assert following(schema, tokenizer, '{"') == {"o"}
    assert following(schema, tokenizer, '{"on": ') == {"t", "f"}
    assert following(schema, tokenizer, '{"on": true') == {"}"}
    assert following(schema, tokenizer, '{"on": true}') == {"end"}
    assert following(schema, tokenizer, '{"on": maybe') == set()
    assert schema.error
    assert "\n" not in schema.error
    assert following(schema, tokenizer, "") == {"{"}  # another answer begins anew


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "[]",
        "true",
        {"type": "nonsense"},
        {"$ref": "http://127.0.0.1/schema"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "string", "pattern": "(("},
        {"type": "string", "minLength": 3, "maxLength": 1},
        {"not": {"type": "string"}},
    ],
    ids=str,
)
def test_a_schema_that_nothing_can_obey_is_refused(schemas: Schemas, schema: Any) -> None:
    with pytest.raises(RequestError, match=r"^response_format: ") as caught:
        schemas.schema(schema if isinstance(schema, str) else json.dumps(schema))
    assert (caught.value.status, caught.value.code) == (400, "invalid_schema")
    assert "\n" not in str(caught.value)
