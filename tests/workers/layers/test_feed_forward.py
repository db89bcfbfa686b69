from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.layers.feed_forward import FeedForward, find_feed_forward, is_linear, linear_sizes

BLOCKS = {
    "llama": ("model.layers.0.mlp", ["gate_proj", "up_proj"], "down_proj", "gated"),
    "phi3": ("model.layers.0.mlp", ["gate_up_proj"], "down_proj", "fused_gate_first"),
    "gpt2": ("transformer.h.0.mlp", ["c_fc"], "c_proj", "plain"),
    "phi": ("model.layers.0.mlp", ["fc1"], "fc2", "plain"),
    "gpt_neox": ("gpt_neox.layers.0.mlp", ["dense_h_to_4h"], "dense_4h_to_h", "plain"),
}


def find(block: nn.Module) -> FeedForward | None:
    return find_feed_forward(block, dict(block.named_children()))


class Misnamed(nn.Module):
    """Gated, with names that mislead, and with equal sizes everywhere."""

    def __init__(self, gate: str, up: str, down: str) -> None:
        super().__init__()
        self.order = gate, up, down
        for name in ("gate_proj", "up_proj", "down_proj"):
            self.add_module(name, nn.Linear(16, 16))
        self.act = functional.silu  # No module: an attribute that can be called.

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in self.order)
        return down(self.act(gate(hidden)) * up(hidden))


class FusedGateLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(8, 24)
        self.out = nn.Linear(12, 8)
        self.act = nn.SiLU()

    def forward(self, hidden: Tensor) -> Tensor:
        up, gate = self.both(hidden).chunk(2, -1)
        return self.out(up * self.act(gate))


class FunctionalActivation(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 12)
        self.choice = (act,)  # Not to be found among the attributes.

    def forward(self, hidden: Tensor) -> Tensor:
        return self.w2(self.choice[0](self.w1(hidden)) * self.w3(hidden))


class Doubled(FusedGateLast):
    """Right sizes, another computation."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


class DropoutInside(nn.Module):
    """In eval mode a plain block, in training another: its dropout lies before the outer linear."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(8, 12), nn.Linear(12, 8), nn.ReLU()
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.act(self.fc1(hidden))
        return self.fc2(functional.dropout(hidden, self.rate, self.training))


class DropoutBehind(DropoutInside):
    """The same behind the outer linear: a function, called with a rate that the block keeps."""

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.fc2(self.act(self.fc1(hidden)))
        return functional.dropout(hidden, self.rate, self.training)


class Scores(nn.Linear):
    """A router as some models have it: a linear by class, which returns two tensors."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(hidden)
        return logits.softmax(-1), logits


def test_blocks_of_real_models(family: str, build_model: Callable[[str], nn.Module]) -> None:
    path, inner, outer, form = BLOCKS[family]
    view = find(build_model(family).get_submodule(path))
    assert view is not None
    assert (list(view.inner), view.outer[0], view.form.__name__) == (inner, outer, form)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "order",
    [
        ("gate_proj", "up_proj", "down_proj"),
        ("up_proj", "gate_proj", "down_proj"),
        ("down_proj", "up_proj", "gate_proj"),
    ],
)
def test_gate_and_up_are_told_apart_by_what_they_do(
    order: tuple[str, str, str], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    view = find(Misnamed(*order).to(dtype))
    assert view is not None
    assert (*view.inner, view.outer[0]) == order


def test_halves_of_a_fused_projection_are_told_apart() -> None:
    torch.manual_seed(0)
    view = find(FusedGateLast())
    assert view is not None
    assert view.form.__name__ == "fused_gate_last"


@pytest.mark.parametrize("act", [functional.silu, functional.gelu, functional.relu])
def test_an_activation_that_is_no_module(act: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    view = find(FunctionalActivation(act))
    assert view is not None
    assert view.act is act
    assert (*view.inner, view.outer[0]) == ("w1", "w3", "w2")
    assert find(FunctionalActivation(torch.tanh)) is None


def test_what_does_not_compute_a_feed_forward_is_none(
    build_model: Callable[[str], nn.Module],
) -> None:
    torch.manual_seed(0)
    assert find(Doubled()) is None
    assert find(DropoutInside(0.5)) is None
    assert find(DropoutInside(0.0)) is not None
    assert find(build_model("llama").get_submodule("model.layers.0.self_attn")) is None
    assert find(build_model("gpt2").get_submodule("transformer.h.0.attn")) is None
    zeros = FusedGateLast()
    nn.init.zeros_(zeros.out.weight)
    nn.init.zeros_(zeros.out.bias)
    assert find(zeros) is None, "a block of zeros proves nothing"


def test_dropout_that_is_no_module_follows_the_blocks_mode() -> None:
    torch.manual_seed(0)
    block, hidden = DropoutBehind(0.5), torch.ones(4, 8)
    view = find(block)
    assert view is not None
    for training in (True, False):
        block.train(training)
        dropped = view.leave(hidden)
        assert (dropped == 0).any() == training


def test_the_probe_leaves_no_trace(build_model: Callable[[str], nn.Module]) -> None:
    block = build_model("gpt2").get_submodule("transformer.h.0.mlp")
    block.train()
    block.get_submodule("act").eval()
    state = torch.get_rng_state()
    assert find(block) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert block.training
    assert not block.get_submodule("act").training
    assert all(parameter.grad is None for parameter in block.parameters())


def test_the_blocks_own_dropout_stays(build_model: Callable[[str], nn.Module]) -> None:
    block = build_model("gpt2").get_submodule("transformer.h.0.mlp").train()
    view = find(block)
    assert view is not None
    hidden = torch.randn(5, 32)
    torch.manual_seed(3)
    expected = block(hidden)
    torch.manual_seed(3)
    torch.testing.assert_close(view.forward(hidden), expected)
    assert not torch.equal(block(hidden), block(hidden))


def test_sizes_of_a_linear(build_model: Callable[[str], nn.Module]) -> None:
    conv1d = build_model("gpt2").get_submodule("transformer.h.0.mlp.c_fc")
    assert linear_sizes(conv1d) == (32, 128)
    assert linear_sizes(nn.Linear(3, 5)) == (3, 5)
    assert linear_sizes(nn.LayerNorm(3)) is None
    assert linear_sizes(nn.Conv1d(3, 5, 1)) is None


def test_a_linear_by_class_alone_is_none(build_model: Callable[[str], nn.Module]) -> None:
    assert is_linear(nn.Linear(3, 5))
    assert is_linear(build_model("gpt2").get_submodule("transformer.h.0.mlp.c_fc"))
    assert not is_linear(Scores(3, 5))
    assert not is_linear(nn.LayerNorm(3))
