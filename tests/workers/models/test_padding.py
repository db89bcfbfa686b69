"""Rows padded on the right get the same without an attention mask, where a model needs none."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.workers.models.test_packing import FAMILIES, MIXED, WINDOW, build
from workers.data.batches import Batch, collate
from workers.data.example import Example, Span
from workers.losses.cross_entropy import IGNORED, cross_entropy, predicted
from workers.models.padding import needs_mask

CHUNKS = {"attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 48}
CAUSAL: dict[str, dict[str, Any]] = {
    **FAMILIES,
    "gpt2": {"pad_token_id": None},
    "gemma2": {**MIXED, "attn_logit_softcapping": 2.0},
    "gpt_oss": {**MIXED, "num_local_experts": 4},
    "llama4_text": CHUNKS,
    "granite": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
"""Windows and chunks are shorter than rows."""
NEEDED: dict[str, tuple[str, dict[str, Any]]] = {
    "states": ("mamba", {}),
    "states and attention": ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4}),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "attention of its own": ("bloom", {}),
    "a warning where it is left out": ("gpt2", {}),
    "both ways": ("gemma3_text", {**WINDOW, "use_bidirectional_attention": True}),
}
LENGTHS = (5, 17, 12, 3)


def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, 64, (length,), generator=generator).tolist() for length in LENGTHS]


def batch(some: list[list[int]]) -> Batch:
    return collate([Example(tuple(row), (Span(1, len(row)),)) for row in some], 0)


def learned(model: PreTrainedModel, given: Batch, mask: Tensor | None) -> Tensor:
    """Its loss."""
    logits = model(given.input_ids_BS, attention_mask=mask, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), predicted(given.labels_BS).flatten(), IGNORED)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", CAUSAL)
def test_padded_rows_get_the_same_without_one(family: str, attention: str) -> None:
    """Loss and gradients: what each row gets alone (families compute a part in float32), and to the
    last digits what padded rows get with a mask. With it transformers' eager attention gives NaN in
    float64 for padding that is farther from its row than a window."""
    model = build(family, **CAUSAL[family]).double()
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("the family has no sdpa")
    model.set_attn_implementation(attention)
    before = model.config._attn_implementation
    assert not needs_mask(model.config)
    assert model.config._attn_implementation == before, "the look is at another model"
    model.set_experts_implementation("eager")  # the others have no float64
    given = batch(rows())
    assert not given.attention_mask_BS.all()
    loss = learned(model, given, None)
    alone = torch.stack([learned(model, batch([row]), None) for row in rows()]).sum()
    check_same(model, loss, alone, 1e-5)
    if attention == "sdpa" or not WINDOW.keys() & CAUSAL[family].keys():
        check_same(model, loss, learned(model, given, given.attention_mask_BS), 1e-12)


def check_same(model: PreTrainedModel, one: Tensor, other: Tensor, error: float) -> None:
    """Two losses and their gradients."""
    torch.testing.assert_close(one, other, atol=error, rtol=error)
    found, wanted = (
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
        for loss in (one, other)
    )
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            scale = max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(mine / scale, theirs / scale, atol=error, rtol=0)


@pytest.mark.parametrize("kind", NEEDED)
def test_what_must_be_told_of_padding_keeps_it(kind: str) -> None:
    family, fields = NEEDED[kind]
    assert needs_mask(build(family, "meta", **fields).config)


def test_attention_both_ways_would_see_padding() -> None:
    """What the look is for."""
    family, fields = NEEDED["both ways"]
    model, given = build(family, **fields).double(), batch(rows())
    wanted = learned(model, given, given.attention_mask_BS)
    assert abs(learned(model, given, None) - wanted) > 1e-3
