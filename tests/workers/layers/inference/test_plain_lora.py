"""Plain LoRA of several adapters on one linear: what each gives alone."""

import pytest
import torch
from torch import nn

from workers.config.adapter import AdapterSpec
from workers.injection.row_map import RowMap
from workers.injection.wrapper import AdaptedModule
from workers.layers.experts import LinearExperts

RANKS = {"a": 2, "b": 5, "c": 3}


def module_of(rows: RowMap, **fields: object) -> AdaptedModule:
    torch.manual_seed(3)
    module = AdaptedModule(nn.Linear(12, 10, dtype=torch.float64), rows)
    rows.slots += list(RANKS)
    for slot, rank in RANKS.items():
        shape = {"num_experts": 1, "top_k": 1, "rank": rank, "alpha": 3 * rank + 1, **fields}
        layer = LinearExperts(module.base, AdapterSpec.model_validate(shape)).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        module.add(slot, layer)
    return module.eval()


def alone(
    module: AdaptedModule, rows: RowMap, hidden: torch.Tensor, slots: list[str | None]
) -> torch.Tensor:
    outputs = []
    for token, slot in enumerate(slots):
        with rows.everywhere(slot):
            outputs.append(module(hidden[:, token : token + 1]))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
@torch.no_grad()
def test_every_token_gets_its_own_adapters_update(fields: dict[str, object]) -> None:
    rows = RowMap()
    module = module_of(rows, **fields)
    hidden = torch.randn(1, 7, 12, dtype=torch.float64)
    for slots in (["a", "b", None, "c", "a", "b", "b"], ["c", "c", "a", "a", "c", "c", "a"]):
        wanted = alone(module, rows, hidden, slots)
        for _ in range(2):  # made, and made before
            with rows.assign(slots):
                assert (module(hidden) - wanted).abs().max() < 1e-12


@torch.no_grad()
def test_it_follows_weights_that_change_and_adapters_that_go() -> None:
    rows = RowMap()
    module = module_of(rows)
    hidden = torch.randn(1, 3, 12, dtype=torch.float64)
    slots: list[str | None] = ["a", "b", None]
    with rows.assign(slots):
        before = module(hidden)
    layer = module._layer("b")
    assert layer is not None
    next(layer.parameters()).mul_(2)
    with rows.assign(slots):
        after = module(hidden)
    assert (after - alone(module, rows, hidden, slots)).abs().max() < 1e-12
    assert (after - before).abs().max() > 1e-3
    module.take_off("a")
    rows.slots.remove("a")
    slots = ["c", "b", None]
    with rows.assign(slots):
        gone = module(hidden)
    assert (gone - alone(module, rows, hidden, slots)).abs().max() < 1e-12


def test_gradients_take_the_general_way() -> None:
    rows = RowMap()
    module = module_of(rows)
    hidden = torch.randn(1, 3, 12, dtype=torch.float64)
    with rows.assign(["a", "b", None]):
        module(hidden).sum().backward()
    grads = [parameter.grad for slot in "ab" for parameter in module._layer(slot).parameters()]  # type: ignore[union-attr]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
