"""Digests: equal for the same content however it was loaded, different for any other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from workers.adapter.digest import base_digest, folder_digest
from workers.adapter.files import attach
from workers.config.base import InputError


def test_a_base_has_one_digest_from_its_folder_loaded_and_adapted(
    golden: Path, model: PreTrainedModel, saved: Callable[..., Path]
) -> None:
    digest = base_digest(golden / "base")
    assert base_digest(model) == digest
    half = AutoModelForCausalLM.from_pretrained(golden / "base", dtype=torch.bfloat16)
    assert base_digest(half) == digest
    assert base_digest(attach(attach(model, saved("a"), "x"), saved("b"), "y")) == digest


def test_tied_embeddings_make_no_difference(tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert model.config.tie_word_embeddings
    assert base_digest(model) == base_digest(tiny_model_dir)


def test_another_base_has_another_digest(model: PreTrainedModel, golden: Path) -> None:
    model.model.layers[1].mlp.up_proj.weight.data += 0.01
    assert base_digest(model) != base_digest(golden / "base")


def test_a_folder_without_weights_has_no_base_digest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder of a base model"):
        base_digest(tmp_path)


def test_an_adapter_folder_is_hashed_whole(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = saved()
    before = folder_digest(folder)
    assert folder_digest(folder.rename(tmp_path / "moved")) == before
    for name in ("adapter_config.json", "manifest.json", "adapter_model.safetensors"):
        path = tmp_path / "moved" / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert folder_digest(tmp_path / "moved") != before
        path.write_bytes(content)
    assert folder_digest(tmp_path / "moved") == before
