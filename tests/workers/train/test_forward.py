"""What a forward pass hands to the model and to its attention."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.workers.models.test_padding import NEEDED, batch, build, rows
from workers.config.train import TrainSpec
from workers.data.batches import Batch, collate
from workers.injection.adapter import Adapter
from workers.injection.inject import inject
from workers.models.base import Base
from workers.train.forward import batch_loss, laid_out
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


KINDS: dict[str, dict[str, object]] = {
    "linear": {"adapter__experts": "linear"},
    "plain": {"adapter__num_experts": 1, "adapter__top_k": 1},
    "block": {},
}


class Drawn(TorchDispatchMode):
    """Counts the masks that are drawn."""

    masks = 0

    def __torch_dispatch__(
        self, operation: Any, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.masks += operation.overloadpacket is torch.ops.aten.random_
        return operation(*args, **(kwargs or {}))


def dropping(
    make_spec: SpecMaker, fields: Mapping[str, object], *, recomputed: bool
) -> tuple[Base, Adapter, Batch]:
    """A model in float64 whose adapter drops 0.3 of what it reads."""
    spec = make_spec(adapter__dropout=0.3, model__activation_checkpointing=recomputed, **fields)
    inputs = Inputs.load(spec)
    inputs.base.model.train().double()
    adapter = inject(inputs.base.model, spec.adapter)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1, generator=generator)
    return inputs.base, adapter, padded(inputs)


@pytest.mark.parametrize(("kind", "expected"), [("linear", 4), ("plain", 4), ("block", 4)])
def test_linears_that_read_the_same_share_a_mask(
    make_spec: SpecMaker, kind: str, expected: int
) -> None:
    """q, k and v one; o one; gate and up one; down one."""
    base, adapter, rows = dropping(make_spec, KINDS[kind], recomputed=False)
    with Drawn() as drawn, laid_out(adapter, base, rows):
        batch_loss(base, rows)
    assert drawn.masks == expected * base.model.config.num_hidden_layers
    with Drawn() as drawn:
        batch_loss(base, rows)
    assert drawn.masks > expected * base.model.config.num_hidden_layers


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recomputed_draws_the_same_masks(make_spec: SpecMaker, kind: str) -> None:
    """Loss and gradients, in float64."""
    results, masks = [], []
    for recomputed in (False, True):
        base, adapter, rows = dropping(make_spec, KINDS[kind], recomputed=recomputed)
        torch.manual_seed(4)
        with Drawn() as drawn, laid_out(adapter, base, rows):
            loss = batch_loss(base, rows)
            gradients = torch.autograd.grad(loss, list(adapter.parameters()))
        results.append([loss, *gradients])
        masks.append(drawn.masks)
    assert masks[1] > masks[0], "it was recomputed"
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert any(one.abs().max() > 0.01 for one in results[0][1:])


@pytest.mark.gpu
def test_padded_rows_take_flash_attention(make_spec: SpecMaker) -> None:
    """Nothing else is allowed."""
    inputs = Inputs.load(make_spec(model__device="cuda", model__dtype="bfloat16"))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        loss = batch_loss(inputs.base, padded(inputs))
    assert loss.isfinite()
