"""Packed rows get what each gets alone, or the model is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from workers.config.base import InputError
from workers.models.packing import (
    check_packing,
    packed_arguments,
    takes_packed_rows,
    taking_packed_rows,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW: dict[str, Any] = {"sliding_window": 6}
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {**WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "gemma": {},
    "gemma3_text": MIXED,
    "phi3": WINDOW,
    "cohere2": MIXED,
    "gpt2": {},  # learned positions
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {},
    "phi": {},
}
LENGTHS = [5, 9, 12, 1, 3]


def build(family: str, device: str = "cpu", **fields: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **{**SIZES, **fields})
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if device == "cpu":
        for parameter in model.parameters():
            parameter.data.mul_(3)  # so that attention has a say
    return model.eval()


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, 64, (length,), generator=generator) for length in LENGTHS]


def packed_logits(model: PreTrainedModel, parts: list[Tensor]) -> list[Tensor]:
    ids = torch.cat(parts).unsqueeze(0)
    with torch.no_grad(), taking_packed_rows(model):
        assert takes_packed_rows(model)
        arguments = packed_arguments(model, list(map(len, parts)), torch.device("cpu"))
        arguments |= {"attention_mask": torch.ones_like(ids), "use_cache": False}
        logits = model(ids, **arguments).logits
    return list(logits[0].split(list(map(len, parts))))


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_get_what_they_get_alone(family: str) -> None:
    """Windows are shorter than rows, and some layers have none."""
    model = build(family, **FAMILIES[family]).double()
    before = model.config._attn_implementation
    check_packing(model)
    check_packing(build(family, "meta", **FAMILIES[family]).bfloat16())
    with torch.no_grad():
        wanted = [model(row.unsqueeze(0), use_cache=False).logits[0] for row in rows()]
    got = packed_logits(model, rows())
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_rows_tokens_reach_no_other_row(family: str) -> None:
    model = build(family, **FAMILIES[family]).double()
    before, changed = packed_logits(model, rows()), rows()
    for place, row in enumerate(rows()):
        changed[place] = (row + 7) % 60 + 4
        after = packed_logits(model, changed)
        for other, (one, two) in enumerate(zip(after, before, strict=True)):
            if other == place:
                assert (one - two).abs().max() > 1e-3
            else:
                torch.testing.assert_close(one, two, atol=1e-14, rtol=1e-14)
        changed[place] = row


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({}, "not all of its layers take transformers' attention"),
    "stablelm": ({}, "not all of its layers take transformers' attention"),
    "mamba": ({}, "not all of its layers take transformers' attention"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "not all of its layers take"),
    "gemma2": ({**WINDOW, "attn_logit_softcapping": 2.0}, "its attention has a soft cap"),
    "gpt_oss": ({**WINDOW, "num_local_experts": 4}, "its attention has attention sinks"),
    "llama4_text": (
        {"attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 48},
        "its attention has a mask of its own",
    ),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_does_not_keep_them_apart_is_refused(family: str) -> None:
    """From its configuration alone, and where it is loaded."""
    fields, why = REFUSED[family]
    models = [build(family, **fields)]
    if family != "lfm2":  # Its convolution reads numbers, which there are none of without weights.
        models.append(build(family, "meta", **fields).bfloat16())
    for model in models:
        before = model.config._attn_implementation
        with pytest.raises(InputError, match=f"data.packing: .* apart: {why}") as caught:
            check_packing(model)
        assert "\n" not in str(caught.value)
        assert model.config._attn_implementation == before
