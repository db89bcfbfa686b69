"""What cannot be exact is refused, with the reason and the nearest that can."""

import json
from pathlib import Path
from typing import Any

import pytest

from workers.adapter.stock.families import TWINS
from workers.adapter.stock.verdict import base_config, why_not
from workers.config.adapter import AdapterSpec
from workers.config.model import ModelSpec
from workers.config.routing import ROUTERS

LLAMA = {"model_type": "llama"}


def reason(base: dict[str, Any] | None = None, **shape: object) -> str | None:
    return why_not(AdapterSpec.model_validate(shape), {**LLAMA, **(base or {})})


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"top_k": 1},
        {"top_k": 8},
        {"gates": "renormalised", "router_temperature": 2.0, "router_jitter": 0.1},
        {"num_experts": (1, 4, 4), "top_k": 1},
        {"expert_dropout": 0.2, "dropout": 0.1, "shared_a": True, "use_rslora": True},
        {"num_experts": 1, "top_k": 1},
        {"num_experts": 1, "top_k": 1, "experts": "linear", "gates": "raw"},
        {"target_modules": ("up_proj",)},
    ],
)
def test_what_is_exact_can(shape: dict[str, object]) -> None:
    assert reason(**shape) is None


@pytest.mark.parametrize(
    ("shape", "said", "nearest"),
    [
        ({"gates": "raw"}, "gates: raw", "gates: renormalised"),
        ({"gates": "residual"}, "gates: residual", "gates: renormalised"),
        ({"routing": "top_p"}, "routing: top_p", "routing: top_k"),
        ({"routing": "switch"}, "routing: switch", "routing: top_k"),
        ({"num_experts": (2, 4, 8)}, "num_experts: [2, 4, 8]", "num_experts: 8"),
        ({"experts": "linear"}, "experts: linear", "experts: block"),
        ({"use_dora": True, "target_modules": ("up_proj",)}, "use_dora", "without use_dora"),
        ({"use_dora": True, "num_experts": 1, "top_k": 1}, "use_dora", "without use_dora"),
    ],
)
def test_a_shape_that_cannot_is_named(shape: dict[str, object], said: str, nearest: str) -> None:
    told = reason(**shape)
    assert told is not None
    assert said in told
    assert nearest in told
    assert "\n" not in told


def test_of_the_strategies_only_one_can() -> None:
    """By the table: a strategy that is added says itself whether it can."""
    can = {name for name in ROUTERS if reason(routing=name, gates="renormalised") is None}
    assert can == {name for name, strategy in ROUTERS.items() if strategy.joint}


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({"attention_bias": True}, "the base has attention_bias: True"),
        ({"mlp_bias": True}, "the base has mlp_bias: True"),
        ({"hidden_act": "gelu"}, "the base has hidden_act: gelu"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window: True"),
        ({"model_type": "gemma3_text"}, "family gemma3_text, of which no sparse twin is known"),
        ({"model_type": "phi3"}, f"there is one for {', '.join(TWINS)}"),
    ],
)
def test_a_base_without_a_twin_is_named(base: dict[str, object], said: str) -> None:
    told = reason(base)
    assert told is not None
    assert said in told
    assert "plain LoRA (num_experts: 1) merges into any base" in told
    assert reason(base, num_experts=1, top_k=1) is None


def test_packed_weights_take_no_updates() -> None:
    told = reason({"quantization_config": {"quant_method": "gptq"}}, num_experts=1, top_k=1)
    assert told is not None
    assert "packed" in told


def test_a_bases_configuration_is_read_where_it_lies(tmp_path: Path) -> None:
    def found(path: object) -> dict[str, Any] | None:
        return base_config(ModelSpec(path=str(path)))

    assert found(tmp_path) is None
    (tmp_path / "config.json").write_text("[")
    assert found(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert found(tmp_path) == LLAMA
    assert found(tmp_path / "gone") is None
    assert found("nobody/has-this-model-here") is None
