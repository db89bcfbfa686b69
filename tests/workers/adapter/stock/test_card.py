"""The model card: what people and the hub read."""

from typing import Any

import pytest
import yaml

from workers.adapter.stock.card import Facts, card
from workers.config.adapter import AdapterSpec


def written(**changes: Any) -> str:
    facts: dict[str, Any] = {
        "name": "home@0123456789ab",
        "digest": "01" * 32,
        "base": "somebody/a-model",
        "base_digest": None,
        "architecture": "MixtralForCausalLM",
        "dtype": "bfloat16",
        "parameters": 3000,
        "base_parameters": 1000,
        "bytes": 6000,
        "spec": AdapterSpec(num_experts=4),
        "experts": 4,
        "top_k": 2,
        "manifest": None,
    }
    return card(Facts(**{**facts, **changes}))


def head(text: str) -> dict[str, Any]:
    values = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(values, dict)
    return values


def test_a_mixture_says_what_it_costs() -> None:
    text = written()
    assert head(text)["base_model"] == "somebody/a-model"
    assert head(text)["tags"] == ["moetune", "moe"]
    assert "2 of 4 for each token" in text
    assert "3.0 times the base's parameters" in text
    assert "sampling defaults are left out" in text
    assert "| trial |" not in text, "what is not known is left out"


def test_plain_lora_has_no_experts() -> None:
    text = written(spec=AdapterSpec(num_experts=1, top_k=1), experts=1, top_k=1)
    assert head(text)["tags"] == ["moetune", "lora"]
    assert "experts" not in text


@pytest.mark.parametrize("path", ["/home/me/secret/base", "../secret/base", "secret/more/base/"])
def test_a_path_is_named_by_its_end(path: str) -> None:
    text = written(base=path, name=path)
    assert head(text)["base_model"] == "base"
    assert "secret" not in text


def test_a_name_ends_no_cell_and_opens_no_tag() -> None:
    text = written(base='a|b\n---\nx: "<script>', name="n|<b>")
    assert head(text)["library_name"] == "transformers"
    assert "<script>" not in text.split("---\n", 2)[2]
    assert "| adapter | n\\|&lt;b> |" in text
