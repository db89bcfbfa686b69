"""How often a step makes the host wait for a GPU: never in a layer, at most once a forward pass,
and once for the step's figures."""

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.workers.host_waits import HostWaits
from workers.config.base import override
from workers.config.train import TrainSpec
from workers.data.batches import Batch
from workers.injection.inject import inject
from workers.models.base import Base
from workers.parallel.update import Replicated
from workers.train.forward import attending, batch_loss, laid_out
from workers.train.step import TrainStep

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}
LOSSES = {"load_balance_weight": 0.1, "z_loss_weight": 0.1, "contrastive_weight": 0.1}
UNROUTED: dict[str, Any] = {
    "adapter.num_experts": 1,
    "adapter.top_k": 1,
    "loss.contrastive_weight": 0,
}
STACKED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
CASES: dict[str, dict[str, Any]] = {
    "block": {},
    "top_p, raw": {"adapter.routing": "top_p", "adapter.gates": "raw"},
    "switch, residual": {"adapter.routing": "switch"},
    "equal, jitter, expert dropout": {
        "adapter.gates": "equal",
        "adapter.router_jitter": 0.1,
        "adapter.expert_dropout": 0.1,
    },
    "few products": {"adapter.rank": 1, "adapter.num_experts": 2},
    "recomputed": {"model.activation_checkpointing": True},
    "linear": {"adapter.experts": "linear", "adapter.target_modules": ("q_proj",)},
    "linear, sorted": {
        "adapter.experts": "linear",
        "adapter.rank": 32,
        "adapter.target_modules": ("q_proj",),
    },
    "DoRA": {"adapter.use_dora": True, "adapter.target_modules": ("q_proj", "up_proj")},
    "plain": UNROUTED,
    "copies of weights": {"adapter.train_also": ("embed_tokens", "lm_head")},
    "rows of tokens": {"adapter.train_tokens": (5, 9)},
    "stacked": {**UNROUTED, "adapter.target_parameters": STACKED},
}


def spec_of(changes: dict[str, Any]) -> TrainSpec:
    values = {
        "model": {"path": "x"},
        "adapter": {"num_experts": 8, "rank": 16, "alpha": 8, "dropout": 0.05},
        "data": {"train": "x", "validation": "x"},
        "optimizer": {"name": "sgd", "steps": 4, "batch_size": 8},
        "loss": LOSSES,
    }
    return override(TrainSpec.model_validate(values), changes, "test")


def batch(lengths: tuple[int, ...] = ()) -> Batch:
    """Rows with padding, or packed ones, with prompts; weighed."""
    rows, length = (1, sum(lengths)) if lengths else (4, 64)
    ids_BS = torch.arange(rows * length).view(rows, length) % 60 + 4
    mask_BS = torch.ones_like(ids_BS)
    if not lengths:
        mask_BS[1, 50:] = 0
    labels_BS = ids_BS.masked_fill(mask_BS == 0, -100)
    labels_BS[:, :10] = -100
    return Batch(ids_BS, mask_BS, labels_BS, torch.full(ids_BS.shape, 0.5), lengths)


def prepared(
    device: str, spec: TrainSpec, family: str = "llama", dtype: torch.dtype = torch.bfloat16
) -> tuple[TrainStep, Base]:
    config = AutoConfig.for_model(family, **SIZES)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    if spec.model.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    adapter = inject(model, spec.adapter)  # which looks at numbers
    model.to(device).train()
    base = Base(model, None, torch.device(device))  # type: ignore[arg-type]  # no text here
    assert not base.needs_mask
    assert base.head
    return TrainStep(spec, base, adapter, Replicated(adapter, spec.optimizer)), base


def waits(name: str, batches: Sequence[Batch], dtype: torch.dtype = torch.bfloat16) -> list[str]:
    family = "qwen3_moe" if name == "stacked" else "llama"
    step, _ = prepared("meta", spec_of(CASES[name]), family, dtype)
    pairs = batches[0].input_ids_BS.numel() * SIZES["num_experts_per_tok"]
    with HostWaits(whole_number=pairs) as found:  # where groups end: all are the first expert's
        result = step(batches)
    assert result.losses.keys() >= {"cross_entropy", "loss"}
    return found.places


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_waited_for_once_a_pass_and_once_at_its_end(name: str) -> None:
    """In a pass it is transformers, which looks whether rows are packed."""
    in_pass, last = waits(name, [batch()])
    assert "item in" in in_pass
    assert "train/forward.py" in in_pass
    assert "to the host in" in last
    assert "train/step.py" in last


def test_packed_rows_are_waited_for_at_the_end_alone() -> None:
    (last,) = waits("block", [batch((30, 50, 40))] * 2)
    assert "train/step.py" in last


@pytest.mark.parametrize("name", ["block", "linear, sorted"])
def test_where_torch_has_no_kernel_for_groups_no_layer_waits_either(name: str) -> None:
    """As on all GPUs but Hopper and Blackwell, and in float32: there it would ask at every call."""
    (last,) = waits(name, [batch((30, 50, 40))], torch.float32)
    assert "train/step.py" in last


def test_there_a_bases_own_experts_are_asked_once_a_layer_where_they_end() -> None:
    """Their matrices are too large for zeros: a dozen products share one answer."""
    in_layer, last = waits("stacked", [batch((30, 50, 40))], torch.float32)
    assert "layers/assignments.py" in in_layer
    assert "train/step.py" in last


def test_what_waits_is_seen() -> None:
    """The tests above could not fail else."""
    here = torch.ones(3)
    with HostWaits() as found:
        there = here.to("meta", non_blocking=True)
        assert not found.places
        there.sum().item()
        there.tolist()
        here.to("meta")
        there.copy_(here)
        torch.tensor([1.0], device="meta")
        kinds = [place.partition(" in ")[0] for place in found.places]
        assert kinds == ["item", "to the host", *["from the host"] * 3]
        for shapeless in (there.nonzero, lambda: there[there > 0]):
            with pytest.raises(NotImplementedError):
                shapeless()


def test_flash_attention_is_told_that_a_single_row_is_one() -> None:
    """Else transformers looks for more of them in its positions, in every layer."""
    _, base = prepared("meta", spec_of({}))
    given: list[dict[str, Any]] = []

    class Given(Exception):  # noqa: N818 -- ends the pass
        pass

    def note(_: object, __: object, options: dict[str, Any]) -> None:
        given.append(options)
        raise Given

    base.model.register_forward_pre_hook(note, with_kwargs=True)
    row = batch((64,))
    alone = Batch(row.input_ids_BS, row.attention_mask_BS, row.labels_BS)
    for name in ("sdpa", "flash_attention_2"):
        base.model.config._attn_implementation = name
        with pytest.raises(Given):
            batch_loss(base, alone)
    plain, flash = given
    assert plain.keys() == {"input_ids", "use_cache"}
    assert (flash["max_length_q"], flash["cu_seq_lens_k"].shape) == (64, (2,))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_is_not_waited_for_in_a_layer(name: str) -> None:
    """CUDA itself looks, in the fused kernels too."""
    family = "qwen3_moe" if name == "stacked" else "llama"
    step, base = prepared("cuda", spec_of(CASES[name]), family)
    packed = [batch((30, 50, 40))] * 2
    step(packed)  # compiles, and looks at the device
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step(packed)
        assert sum("synchroniz" in str(one.message) for one in told) <= 1
        torch.cuda.set_sync_debug_mode("error")
        with laid_out(step._adapter, base, packed[0]), attending(base, packed):
            batch_loss(base, packed[0]).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
