"""A broken adapter in a pack spoils its own rows, and nobody else's: nor the base's.

What is broken overflows, or is not finite: infinity times a zero that masks it is not zero.
"""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from workers.config.adapter import AdapterSpec
from workers.injection.adapter import Adapter
from workers.injection.inject import inject, row_map

SPECS: dict[str, dict[str, object]] = {
    "block": {"num_experts": 4, "top_k": 2},
    "top_p": {"num_experts": 3, "routing": "top_p"},
    "residual": {"num_experts": 3, "top_k": 1, "gates": "residual"},
    "linear": {"experts": "linear", "num_experts": 3, "top_k": 2},
    "lora": {"num_experts": 1, "top_k": 1},
    "dora": {"num_experts": 2, "use_dora": True, "target_modules": ("up_proj", "q_proj")},
    "linear dora": {"experts": "linear", "num_experts": 2, "use_dora": True},
    "gate": {"num_experts": 2, "top_k": 1, "target_modules": ("gate_proj",)},
    "down": {"num_experts": 2, "top_k": 1, "target_modules": ("down_proj",)},
}
BROKEN: dict[str, dict[str, object]] = {
    "block": {"num_experts": 5, "top_k": 3},
    "top_p": {"num_experts": 5, "routing": "top_p", "gates": "raw"},
    "linear": {"experts": "linear", "num_experts": 4, "top_k": 3},
    "lora": {"num_experts": 1, "top_k": 1},
    "linear dora": {"experts": "linear", "num_experts": 2, "use_dora": True},
}
FLAWS: dict[str, Callable[[str, Tensor], object]] = {
    "overflows": lambda name, weight: name.endswith("lora_B") and weight.mul_(1e300),
    "infinite": lambda _, weight: weight.fill_(torch.inf),
    "no number": lambda _, weight: weight.fill_(torch.nan),
}
ROWS = ["small", None, "broken", "small"]
SOUND = [0, 1, 3]


def attach(model: nn.Module, slot: str, fields: dict[str, object]) -> Adapter:
    spec = AdapterSpec.model_validate({"rank": 4, "alpha": 8, "dropout": 0, **fields})
    adapter = inject(model, spec, slot=slot)
    generator = torch.Generator().manual_seed(len(slot))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapter


def ids(length: int) -> Tensor:
    return torch.randint(3, 64, (len(ROWS), length), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def packed(
    request: pytest.FixtureRequest, build_model: Callable[[str], nn.Module]
) -> tuple[nn.Module, Adapter]:
    """A model with a sound adapter and a broken one, and the sound one."""
    small, broken, flaw = request.param
    model = build_model("llama")
    sound = attach(model, "small", SPECS[small])
    adapter = attach(model, "broken", BROKEN[broken])
    model.double()
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            FLAWS[flaw](name, parameter)
    return model, sound


CASES = [
    *[("block", "block", flaw) for flaw in FLAWS],
    *[("block", broken, "infinite") for broken in BROKEN if broken != "block"],
    *[(small, "block", "infinite") for small in SPECS if small != "block"],
    *[(small, "linear", "infinite") for small in ("linear", "lora", "linear dora")],
    ("lora", "lora", "overflows"),
    ("lora", "lora", "infinite"),
    ("top_p", "top_p", "overflows"),
    ("linear dora", "linear dora", "overflows"),
]
packs = pytest.mark.parametrize("packed", CASES, indirect=True, ids=" / ".join)


def separate(model: nn.Module, length: int) -> Tensor:
    """The logits of the sound rows, each kind in a batch of its own."""
    logits = torch.empty(len(ROWS), length, 64, dtype=torch.float64)
    for slot in ("small", None):
        own = [row for row, name in enumerate(ROWS) if name == slot]
        with row_map(model).everywhere(slot):
            logits[own] = model(ids(length)[own]).logits
    return logits[SOUND]


@pytest.mark.parametrize("watched", [False, True], ids=["", "watched"])
@pytest.mark.parametrize(("length", "few"), [(1, 10**5), (6, 0)], ids=["decode", "prefill"])
@packs
def test_answers_beside_a_broken_adapter(
    packed: tuple[nn.Module, Adapter],
    length: int,
    few: int,
    watched: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prepared for service, and in the general way, which whoever records takes."""
    model, sound = packed
    monkeypatch.setattr("workers.layers.inference.prepared.PLAIN_PRODUCTS", max(few, 1))
    monkeypatch.setattr("workers.layers.mixture.select.PLAIN_PRODUCTS", few)
    with torch.inference_mode():
        wanted = separate(model, length)
        with row_map(model).assign(ROWS), sound.record() if watched else nullcontext():
            got = model(ids(length)).logits
    assert wanted.isfinite().all()
    assert not got[2].isfinite().all(), "else nothing is broken"
    torch.testing.assert_close(got[SOUND], wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("few", [10**9, 0])
@packs
def test_gradients_beside_a_broken_adapter(
    packed: tuple[nn.Module, Adapter], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is no number, and so are all gradients that come from it."""
    model, sound = packed
    monkeypatch.setattr("workers.layers.mixture.select.PLAIN_PRODUCTS", few)
    separate(model, 6).square().sum().backward()
    wanted = {name: parameter.grad for name, parameter in sound.named_parameters()}
    for parameter in sound.parameters():
        parameter.grad = None
    with row_map(model).assign(ROWS):
        model(ids(6)).logits.square().sum().backward()
    for name, parameter in sound.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-9, rtol=1e-9)
