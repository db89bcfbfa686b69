"""The eager path under torch.compile: one graph, no breaks, the same numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from workers.config.adapter import AdapterSpec
from workers.injection.inject import inject

ALONE = {"experts": "linear", "target_modules": ("v_proj", "down_proj"), "dropout": 0}
"""Each linear is traced by itself, which takes most of a second: one of each half of a layer."""
SPECS = {
    "block": AdapterSpec(num_experts=4, rank=4),
    "linear": AdapterSpec(num_experts=3, rank=4, **ALONE),
    "dora": AdapterSpec(num_experts=2, use_dora=True, **ALONE),
    "top_p": AdapterSpec(num_experts=4, rank=4, routing="top_p", dropout=0),
}


def randomised(model: nn.Module, spec: AdapterSpec) -> nn.Module:
    adapter = inject(model, spec)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("name", SPECS)
def test_a_model_compiles_whole(build_model: Callable[..., nn.Module], name: str) -> None:
    model = randomised(build_model("llama", num_hidden_layers=1), SPECS[name]).eval()
    ids = torch.arange(18).view(2, 9)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(ids, use_cache=False).logits
        logits.square().mean().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        outputs.append([logits.detach(), *gradients])
    assert len(outputs[0]) > 5
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_training_with_dropout_compiles_whole(build_model: Callable[..., nn.Module]) -> None:
    model = randomised(build_model("llama", num_hidden_layers=1), SPECS["block"]).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(torch.arange(18).view(2, 9), use_cache=False).logits.square().mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["block", "linear"])
def test_inference_compiles_whole(build_model: Callable[..., nn.Module], name: str) -> None:
    """Weights that are prepared for serving are no matter of the graph."""
    model = randomised(build_model("llama", num_hidden_layers=1), SPECS[name]).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids = torch.arange(3).view(1, 3)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected)
