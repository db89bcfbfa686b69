"""config.json of an exported checkpoint, in words that old and new readers know."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig

from workers.adapter.stock.families import Twin
from workers.adapter.stock.verdict import experts_and_slots
from workers.config.adapter import AdapterSpec

_NO_HABITS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    "transformers_version",
)
_ANYTHING = {"architectures": None, **PretrainedConfig().to_dict()}
"""Fields of every configuration, which say nothing at their defaults."""

_EXPERTS = ("num_experts", "num_local_experts")
"""Readers look for one of them: transformers 5 has the second where older ones have the first."""


def dense_values(raw: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The base's own configuration as its file has it, in the precision that is written."""
    return {**raw, **_precision(dtype)}


def generation_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Of a base's generation_config.json what is no habit. An adapter is measured without its
    base's repetition penalty and sampling, which engines would take for their defaults."""
    return {name: raw[name] for name in _NO_HABITS if name in raw}


def sparse_values(
    config: PretrainedConfig, twin: Twin, spec: AdapterSpec, dtype: torch.dtype
) -> dict[str, Any]:
    """The twin's configuration: every field written out, since readers differ in their defaults.
    Its head is never tied: SGLang does not look whether it is, but for GraniteMoE."""
    kind = CONFIG_MAPPING[twin.model_type]
    mine = config.to_dict()
    experts, slots = experts_and_slots(spec)
    counted = {"experts": experts, "slots": slots, "width": mine["intermediate_size"]}
    known = {*kind().to_dict(), "head_dim"} - _ANYTHING.keys()
    values = {
        **{name: value for name, value in mine.items() if name in known},
        **twin.sets,
        **{name: counted[count] for name, count in twin.counts.items()},
        "hidden_act": "silu",
    }
    told = {
        name: value
        for name, value in kind(**values).to_dict().items()
        if name not in _ANYTHING or value != _ANYTHING[name]
    }
    if told.get("use_sliding_window") is False:
        told["sliding_window"] = None
    return {
        "architectures": [twin.architecture],
        **told,
        **dict.fromkeys(_EXPERTS, experts),
        **_older_rope(told["rope_parameters"]),
        **_precision(dtype),
        "tie_word_embeddings": False,
    }


def _older_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding in the fields that it had until transformers 5."""
    plain = rope.get("rope_type", "default") == "default"
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": None if plain else scaling}


def _precision(dtype: torch.dtype) -> dict[str, str]:
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "torch_dtype": name}
