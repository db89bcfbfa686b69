"""A quantised frozen base: packed weights, which only pass through their own linear's forward.

Adapters are float32 beside it, as in QLoRA (arXiv 2305.14314).
"""

import logging
from importlib.util import find_spec
from typing import Any

import torch
from transformers import (
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    TorchAoConfig,
)

from workers.config.base import InputError
from workers.config.extras import installing
from workers.config.model import ModelSpec

LIBRARIES = {"bnb_nf4": "bitsandbytes", "bnb_int8": "bitsandbytes", "torchao_int8": "torchao"}
"""Package that computes with each quantization."""


def check_quantised(spec: ModelSpec, config: PretrainedConfig) -> None:
    """Raise InputError where the package is missing, or the model's files are quantised already."""
    stored = _stored(config)
    if stored and spec.quantization:
        raise InputError(
            f"model.quantization is {spec.quantization}, but the files of {spec.path} are "
            f"quantised already ({stored}); leave it out"
        )
    library = stored or LIBRARIES.get(spec.quantization or "")
    if library and library in LIBRARIES.values() and find_spec(library) is None:
        wish = f"model.quantization is {spec.quantization}"
        wish = f"model.path: {spec.path}: is quantised" if stored else wish
        raise InputError(f"{wish}, which needs {library}: {installing('quantized')}")


def quantising(spec: ModelSpec) -> dict[str, Any]:
    """Options of `from_pretrained` that quantise the linears of the decoder while they are read."""
    dtype = getattr(torch, spec.dtype)
    if spec.quantization is None:
        return {}
    if spec.quantization == "bnb_nf4":
        how: Any = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    elif spec.quantization == "bnb_int8":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        from torchao.quantization import Int8WeightOnlyConfig

        # Of the weights alone: where inputs are rounded too, no gradient gets through to them.
        how = TorchAoConfig(Int8WeightOnlyConfig())
    return {"quantization_config": how}


def make_trainable(model: PreTrainedModel) -> None:
    """Switch off what keeps gradients from flowing through bitsandbytes' linears, and its warning
    at each call that int8 inputs are rounded by way of float16."""
    for module in model.modules():
        # On a CPU, 4-bit linears that ran once without gradients are repacked for a kernel that
        # passes none back, silently; nor does it take every width.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _stored(config: PretrainedConfig) -> str | None:
    """Name of the method that the model's files are quantised with."""
    values = getattr(config, "quantization_config", None)
    if values is None:
        return None
    values = values if isinstance(values, dict) else values.to_dict()
    return str(getattr(values.get("quant_method"), "value", values.get("quant_method")))
