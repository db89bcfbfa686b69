"""adapter_config.json as we write it: the reference implementation's keys, then ours. No torch."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from workers.adapter.config import OURS, AdapterConfig, PeftType
from workers.adapter.routing_keys import routing_keys
from workers.config.adapter import AdapterSpec


def peft_type(spec: AdapterSpec) -> PeftType:
    """The format that an adapter of this shape is written in."""
    if not spec.is_routed:
        return "LORA"
    return "MIXLORA" if spec.experts == "block" else "MOELORA"


def config_values(
    spec: AdapterSpec,
    linears: Sequence[str],
    base: str,
    layer_list: str = "layers",
    parameters: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of `adapter_config.json`, in the reference implementation's key order.

    `linears` and `parameters` are the adapted linears' and stacked weights' names, which anything
    but names is written out as; `layer_list` is the model's own path of its layers, by which PEFT
    knows them.
    """
    kind = peft_type(spec)
    targets = spec.target_modules if spec.names_linears else linears
    if kind == "LORA":
        targets = _paths(targets, layer_list)
    values = {
        **({"use_dora": True} if spec.use_dora and kind == "LORA" else {}),
        "use_rslora": spec.use_rslora,
        "bias": "none",
        "peft_type": kind,
        "r": spec.rank,
        # The reference implementation asserts an int.
        "lora_alpha": int(spec.alpha) if spec.alpha.is_integer() else spec.alpha,
        # PEFT knows no dropout of stacked weights, and refuses a file that has any.
        "lora_dropout": 0.0 if parameters else spec.dropout,
        "target_modules": list(targets),
        **({"target_parameters": _paths(parameters, layer_list)} if parameters else {}),
        **({"modules_to_save": list(spec.train_also)} if spec.train_also else {}),
        **({"trainable_token_indices": _tokens(spec)} if spec.train_tokens else {}),
        **({} if kind == "LORA" else routing_keys(spec)),
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
    }
    known = AdapterConfig.model_validate(values).spec(targets, spec.rank, "adapter", parameters)
    ours = {
        name: value
        for name, value in spec.model_dump(mode="json", include=set(OURS)).items()
        if kind != "LORA" and value != known.model_dump(mode="json")[name]
    }
    return {**values, **({"moetune": ours} if ours else {})}


def _tokens(spec: AdapterSpec) -> dict[str, list[Any]]:
    """Whole, by each module that has rows of them."""
    return {name: list(spec.train_tokens) for name in spec.train_tokens_of}


def _paths(names: Iterable[str], layer_list: str) -> list[str]:
    """Whole canonical paths by the model's own."""
    return [re.sub(r"^layers(?=\.\d+\.)", layer_list, name) for name in names]
