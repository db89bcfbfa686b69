"""What a forward pass hands to the model and to its attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tests.workers.models.test_padding import NEEDED, batch, build, rows
from workers.config.train import TrainSpec
from workers.data.batches import Batch, collate
from workers.models.base import Base
from workers.train.forward import batch_loss
from workers.train.inputs import Inputs

SpecMaker = Callable[..., TrainSpec]


class Watched(TorchFunctionMode):
    """Notes the options of each call of torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.options: list[dict[str, Any]] = []

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is scaled_dot_product_attention:
            self.options.append(kwargs)
        return function(*args, **(kwargs or {}))


def padded(inputs: Inputs) -> Batch:
    made = collate(sorted(inputs.train, key=len)[:: len(inputs.train) - 1], inputs.pad_token_id)
    assert not made.attention_mask_BS.all()
    return made


def test_padded_rows_have_causal_attention_without_a_mask(make_spec: SpecMaker) -> None:
    inputs = Inputs.load(make_spec())
    with Watched() as watched:
        batch_loss(inputs.base, padded(inputs))
    layers = inputs.base.model.config.num_hidden_layers
    assert [(one["attn_mask"] is None, one["is_causal"]) for one in watched.options] == [
        (True, True)
    ] * layers


def test_a_model_that_must_be_told_of_padding_is_told() -> None:
    family, fields = NEEDED["both ways"]
    model, given, told = build(family, **fields), batch(rows()), []
    model.register_forward_pre_hook(
        lambda _module, _args, options: told.append(options.get("attention_mask")),
        with_kwargs=True,
    )
    batch_loss(Base(model, None, torch.device("cpu")), given)  # type: ignore[arg-type]
    assert torch.equal(told[0], given.attention_mask_BS)


@pytest.mark.gpu
def test_padded_rows_take_flash_attention(make_spec: SpecMaker) -> None:
    """Nothing else is allowed."""
    inputs = Inputs.load(make_spec(model__device="cuda", model__dtype="bfloat16"))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        loss = batch_loss(inputs.base, padded(inputs))
    assert loss.isfinite()
