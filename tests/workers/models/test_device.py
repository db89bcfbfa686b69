"""Where a base lies, and in which precision: what a worker's own device computes."""

import pytest
import torch

from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.models.device import device_of, settled


def asked(**fields: str) -> ModelSpec:
    return ModelSpec.model_validate({"path": "x", **fields})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if there was one, which computes bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    return monkeypatch


def test_auto_is_bfloat16_where_a_gpu_computes_it(gpu: pytest.MonkeyPatch) -> None:
    assert settled(asked()).dtype == "bfloat16"
    assert settled(asked(device="cuda", attention="flash_attention_2")).dtype == "bfloat16"
    assert settled(asked(device="cpu")).dtype == "float32"
    assert settled(asked(dtype="float32")).dtype == "float32"
    assert device_of(asked()) == torch.device("cuda", 1)


def test_a_gpu_that_only_emulates_it_computes_in_float32(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert settled(asked()).dtype == "float32"
    assert settled(asked(dtype="bfloat16")).dtype == "bfloat16", "who asks for it has it"
    with pytest.raises(InputError, match=r"^model: .*flash_attention_2.* but dtype is float32"):
        settled(asked(attention="flash_attention_2"))


def test_without_a_gpu_it_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert settled(asked()).dtype == "float32"
    with pytest.raises(InputError, match="sees no GPU"):
        settled(asked(device="cuda"))


def test_what_only_a_workers_device_can_say_is_open_in_a_specification() -> None:
    assert asked().settled_dtype is None
    assert asked(device="cpu").settled_dtype == "float32"
    assert asked(dtype="bfloat16").settled_dtype == "bfloat16"
