"""A model's output head by itself gives what the model gives, whatever a family makes of it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from tests.workers.models.test_packing import build
from tests.workers.models.test_padding import batch, rows
from workers.losses import head_loss
from workers.models.base import Base
from workers.models.output_head import output_head
from workers.train.forward import batch_loss, target_losses

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "gemma2": {"final_logit_softcapping": 0.5, "attn_logit_softcapping": None},
    "nanochat": {"final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 0.25},
    "cohere": {"logit_scale": 5.0},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "lm_head_multiplier": 3.0},
    "phi": {},  # its head has a bias
    "gpt2": {"pad_token_id": None},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "mixtral": {"num_local_experts": 4},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 48},
}
WHOLE: dict[str, dict[str, Any]] = {"modernbert-decoder": {}}
"""Families whose hidden states pass through more than a head."""


class Watched(TorchFunctionMode):
    """Notes how many positions go through linears of one weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.positions = weight, list[int]()

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is functional.linear and args[1] is self.weight:
            self.positions.append(args[0].shape[:-1].numel())
        return function(*args, **(kwargs or {}))


def base_of(family: str, fields: dict[str, Any]) -> Base:
    model = build(family, **fields).double()
    model.set_experts_implementation("eager")  # the others have no float64
    return Base(model, None, torch.device("cpu"))  # type: ignore[arg-type]


def reference(model: PreTrainedModel) -> Tensor:
    """Each target's loss, by all logits and torch's own cross-entropy."""
    given = batch(rows())
    logits = model(
        given.input_ids_BS, attention_mask=given.attention_mask_BS, use_cache=False
    ).logits
    target = functional.pad(given.labels_BS[:, 1:], (0, 1), value=-100).flatten()
    losses = functional.cross_entropy(logits.flatten(0, 1).double(), target, reduction="none")
    return losses[target != -100]


@pytest.mark.parametrize("family", [*FAMILIES, *WHOLE])
def test_a_batchs_loss_and_gradients_are_the_models_own(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of a few tokens; of all weights, the head's among them."""
    monkeypatch.setitem(head_loss.PIECE_BYTES, "cpu", 4 * 64 * 5)
    base, given = base_of(family, {**FAMILIES, **WHOLE}[family]), batch(rows())
    assert (base.head is None) == (family in WHOLE)
    wanted = reference(base.model)
    loss, each = batch_loss(base, given), target_losses(base, given)
    error = 1e-10 if loss.dtype == torch.float64 and family != "falcon_h1" else 1e-5
    torch.testing.assert_close(each.double(), wanted.detach(), atol=error, rtol=error)
    torch.testing.assert_close(loss.double(), wanted.sum(), atol=error, rtol=error)
    weights = [one for one in base.model.parameters() if one.requires_grad]
    found, expected = (
        torch.autograd.grad(one, weights, allow_unused=True) for one in (loss, wanted.sum())
    )
    assert sum(one is not None for one in expected) > 4
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            scale = max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(mine / scale, theirs / scale, atol=error, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_targets_alone_meet_the_head_and_never_all_at_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head_loss.PIECE_BYTES, "cpu", 4 * 64 * 5)
    base, given = base_of(family, FAMILIES[family]), batch(rows())
    assert base.head is not None
    with Watched(base.head.module.weight) as watched:
        batch_loss(base, given).backward()
    targets = int(given.counted)
    assert sum(watched.positions) == targets < given.attention_mask_BS.sum()
    assert max(watched.positions) <= 5 < targets


@pytest.mark.parametrize("family", [*FAMILIES, *WHOLE])
def test_a_model_without_weights_has_the_same(family: str) -> None:
    """Which the estimate of memory looks at."""
    fields = {**FAMILIES, **WHOLE}[family]
    assert (output_head(build(family, "meta", **fields)) is None) == (family in WHOLE)


def test_a_model_is_as_before_even_where_a_pass_fails() -> None:
    base, given = base_of("llama", {}), batch(rows())
    assert base.head is not None
    before = base.model(given.input_ids_BS).logits
    with base.head.instead(lambda _: None), pytest.raises(IndexError):
        base.model(torch.full((1, 1), 10**6))
    assert torch.equal(base.model(given.input_ids_BS).logits, before)
