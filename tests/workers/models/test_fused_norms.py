"""RMS norms by torch's fused kernels: the same numbers, and only where they are."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from workers.adapter.digest import base_digest
from workers.config.adapter import AdapterSpec
from workers.config.model import ModelSpec
from workers.config.parallel import ParallelSpec
from workers.injection.inject import inject
from workers.models.base import load_base
from workers.models.fused_norms import FusedNorm, fuse_norms, wants_fused_norms

Build = Callable[..., PreTrainedModel]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
HEADS = {"num_key_value_heads": 2}
FUSED = {"llama": 5, "qwen3": 9, "mixtral": 5, "gpt_oss": 5, "olmo2": 9, "phi3": 5, "glm4": 9}
"""Norms of two layers and the last one; those of queries and keys among them."""
NOT = ["gemma", "gemma3_text", "gpt2", "phi"]
"""They add one to the weight, or have layer norms."""


def drawn(model: PreTrainedModel) -> PreTrainedModel:
    """With norms that do not scale by ones."""
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.dim() == 1:
            nn.init.uniform_(weight.data, 0.5, 1.5, generator=generator)
    return model


def outcome(model: PreTrainedModel, spec: AdapterSpec) -> list[Tensor]:
    """Logits, and the gradients of an adapter, with the hidden states' way through all norms."""
    adapter = inject(model, spec)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter.data, std=0.2, generator=generator)
    ids_BS = torch.randint(3, 64, (2, 7), generator=generator)
    logits_BSV = model(ids_BS, use_cache=False).logits
    return [logits_BSV, *torch.autograd.grad(logits_BSV.cos().sum(), list(adapter.parameters()))]


class ExactNorm(nn.Module):
    """The formula, in the precision of what comes in."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden / (hidden.square().mean(-1, keepdim=True) + self.eps).sqrt()


def with_exact_norms(model: PreTrainedModel) -> PreTrainedModel:
    for owner in list(model.modules()):
        for name, norm in list(owner.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                setattr(owner, name, ExactNorm(norm))
    return model


@pytest.mark.parametrize("family", FUSED)
def test_every_norm_is_replaced_with_its_weight_under_its_name(
    build_model: Build, family: str
) -> None:
    model = drawn(build_model(family, **HEADS))
    names, digest = dict(model.named_parameters()), base_digest(model)
    assert fuse_norms(model) == f"{FUSED[family]} RMS norms are torch's fused ones"
    assert sum(isinstance(module, FusedNorm) for module in model.modules()) == FUSED[family]
    assert dict(model.named_parameters()) == names, "the very weights"
    assert base_digest(model) == digest


@pytest.mark.parametrize("family", [one for one in FUSED if one not in ("mixtral", "gpt_oss")])
def test_a_models_outputs_and_gradients_are_the_formulas(build_model: Build, family: str) -> None:
    """In float64, which the two families' grouped products do not take."""
    written = drawn(build_model(family, **HEADS).double())
    exact, fused = with_exact_norms(deepcopy(written)), deepcopy(written)
    fuse_norms(fused)
    spec = AdapterSpec(experts="linear", num_experts=2, rank=2, dropout=0)
    got, wanted, rounded = (outcome(model, spec) for model in (fused, exact, written))
    for one, truth, other in zip(got, wanted, rounded, strict=True):
        assert (one - truth).norm() <= 1e-12 * truth.norm()
        # transformers norms in float32, whatever the model's precision.
        assert (one - other).norm() <= 1e-4 * truth.norm()


@pytest.mark.parametrize("family", NOT)
def test_what_computes_something_else_is_left_alone(build_model: Build, family: str) -> None:
    model = build_model(family)
    modules = dict(model.named_modules())
    assert fuse_norms(model) is None
    assert dict(model.named_modules()) == modules


def test_a_norm_that_only_looks_like_one_is_left_alone(build_model: Build) -> None:
    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states).tanh()

    model = build_model("llama")
    model.model.norm = OddRMSNorm(32)
    assert (
        fuse_norms(model) == "4 RMS norms are torch's fused ones; 1 others are as they are written"
    )
    assert isinstance(model.model.norm, OddRMSNorm)


def reference(norm: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    wide = hidden.double()
    root = (wide.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    return norm.weight.double() * wide / root


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_is_no_further_from_the_formula_than_what_is_written(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(48, eps=1e-5).requires_grad_(False)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    norm = norm.to(dtype)
    hidden = (torch.randn(3, 9, 48) * 2).to(dtype).requires_grad_()
    arriving = torch.randn(3, 9, 48)

    def results(compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
        output = compute(hidden)
        (gradient,) = torch.autograd.grad(output, hidden, arriving.to(output.dtype))
        return [output.double(), gradient.double()]

    exact = results(lambda hidden: reference(norm, hidden))
    written, got = results(norm), results(FusedNorm(norm.weight, norm.variance_epsilon))
    for one, other, truth in zip(got, written, exact, strict=True):
        assert (one - truth).norm() <= 1.1 * (other - truth).norm()
        assert (one - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()


def test_a_weight_of_another_precision_gives_what_it_gave() -> None:
    norm = drawn_norm().float()
    hidden = torch.randn(4, 48).bfloat16()
    got = FusedNorm(norm.weight, norm.variance_epsilon)(hidden)
    assert got.dtype == norm(hidden).dtype == torch.float32
    torch.testing.assert_close(got, norm(hidden), atol=0.02, rtol=0.01)


def drawn_norm() -> LlamaRMSNorm:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(48).requires_grad_(False)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


def test_it_compiles_whole() -> None:
    norm, hidden = drawn_norm(), torch.randn(2, 5, 48, requires_grad=True)
    fused = FusedNorm(norm.weight, norm.variance_epsilon)
    results = []
    for run in (fused, torch.compile(fused, fullgraph=True, backend="aot_eager")):
        output = run(hidden)
        results.append((output, *torch.autograd.grad(output.cos().sum(), hidden)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


ZERO: dict[str, Any] = {"strategy": "deepspeed", "workers": 2}
WANTED: list[tuple[dict[str, Any], dict[str, Any], torch.device, bool]] = [
    ({}, {}, GPU, True),
    ({}, {}, CPU, False),
    ({"fused_norms": False}, {}, GPU, False),
    ({}, {"strategy": "fsdp2", "workers": 2}, GPU, False),
    ({}, {**ZERO, "zero_stage": 3}, GPU, False),
    ({}, {**ZERO, "zero_stage": 2}, GPU, True),
]


@pytest.mark.parametrize(("model", "parallel", "device", "expected"), WANTED)
def test_they_are_for_gpus_and_a_base_that_is_whole(
    model: dict[str, Any], parallel: dict[str, Any], device: torch.device, expected: bool
) -> None:
    spec = ModelSpec.model_validate({"path": "x", **model})
    assert wants_fused_norms(spec, ParallelSpec.model_validate(parallel), device) is expected


def test_a_base_says_what_was_done(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(path=str(tiny_model_dir), dtype="float32")
    if not torch.cuda.is_available():
        assert load_base(spec).norms is None
    monkeypatch.setattr("workers.models.base.wants_fused_norms", lambda *_: True)
    base = load_base(spec)
    count = 2 * base.model.config.num_hidden_layers + 1
    assert base.norms == f"{count} RMS norms are torch's fused ones"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_runs_one_kernel_forward_and_one_back(tiny_model_dir: Path, dtype: str) -> None:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cuda", dtype=dtype))
    norm = next(module for module in base.model.modules() if isinstance(module, FusedNorm))
    width = len(norm.weight)
    hidden = torch.randn(4, width, device="cuda", dtype=norm.weight.dtype, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        output = norm(hidden)
        torch.autograd.grad(output, hidden, torch.ones_like(output))
    kernels = [one.key for one in recorded.key_averages() if "emcpy" not in one.key]
    assert len(kernels) <= 4, kernels  # as written: 6 and 12
