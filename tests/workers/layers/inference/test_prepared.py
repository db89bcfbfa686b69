"""Decoding steps and prompts give what the general way gives, and follow changes of the weights."""

import pytest
import torch
from torch import nn

from workers.config.adapter import AdapterSpec
from workers.layers.experts import BlockExperts
from workers.layers.feed_forward import FeedForward, find_feed_forward

SPECS = {
    "top_k": AdapterSpec(num_experts=4, rank=3),
    "top_p": AdapterSpec(num_experts=4, rank=3, routing="top_p", gates="raw"),
    "switch": AdapterSpec(num_experts=3, rank=2, routing="switch"),
    "shared": AdapterSpec(num_experts=4, rank=3, shared_a=True),
    "dora": AdapterSpec(num_experts=4, rank=3, use_dora=True),
}


class Block(nn.Module):
    """A frozen block, gated or fused, with biases."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.both = nn.Linear(6, 20) if fused else None
        self.gate, self.up = (None, None) if fused else (nn.Linear(6, 10), nn.Linear(6, 10))
        self.out = nn.Linear(10, 6)
        self.double().requires_grad_(False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.both is not None:
            gate, up = self.both(hidden).chunk(2, dim=-1)
        else:
            gate, up = self.gate(hidden), self.up(hidden)
        return self.out(self.act(gate) * up)


def build(fused: bool, name: str) -> tuple[FeedForward, BlockExperts]:
    block = Block(fused)
    view = find_feed_forward(block, {n: c for n, c in block.named_children() if c is not None})
    assert view is not None
    targets = [linear for linear in view.linears if linear != "out" or name != "dora"]
    layer = BlockExperts(view, SPECS[name], targets).double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return view, layer


@pytest.mark.parametrize("tokens", [5, 2000])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_it_is_what_the_general_way_gives(name: str, fused: bool, tokens: int) -> None:
    torch.manual_seed(0)
    view, layer = build(fused, name)
    hidden_TD = torch.randn(tokens, 6, dtype=torch.float64)
    expected = layer(view, hidden_TD)  # With gradients: the general way.
    for inference in (torch.no_grad(), torch.inference_mode()):
        with inference:
            torch.testing.assert_close(layer(view, hidden_TD), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("change", ["copy", "data", "training"])
def test_it_follows_changes_of_the_weights(change: str) -> None:
    torch.manual_seed(0)
    view, layer = build(False, "top_k")
    hidden_TD = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        before = layer(view, hidden_TD)
        for parameter in layer.parameters():
            if change == "copy":
                parameter.copy_(parameter * 2)
            elif change == "data":  # What Module.to does.
                parameter.data = parameter.data * 2
            else:  # Some optimizers write where no version is counted; training precedes.
                parameter.data.mul_(2)
        if change == "training":
            layer.train().eval()
        after = layer(view, hidden_TD)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, layer(view, hidden_TD), atol=1e-12, rtol=1e-12)
