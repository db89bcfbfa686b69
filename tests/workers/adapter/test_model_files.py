"""A model's weights lie where transformers finds them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from workers.adapter.digest import base_digest
from workers.adapter.model_files import INDEX, weight_files
from workers.config.base import InputError


def split(model: Path, to: Path) -> Path:
    """The model in several files."""
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(to, max_shard_size="20kB")
    assert (to / INDEX).is_file()
    return to


def test_the_parts_are_those_of_the_index(golden: Path, tmp_path: Path) -> None:
    folder = split(golden / "base", tmp_path / "split")
    parts = sorted(folder.glob("*.safetensors"))
    assert len(parts) > 1
    assert sorted(weight_files(folder)) == parts
    save_file({"other": torch.ones(7)}, folder / "consolidated.safetensors")
    save_file({"other": torch.ones(7)}, folder / "model-old.safetensors")
    assert sorted(weight_files(folder)) == parts
    assert base_digest(folder) == base_digest(golden / "base")


def test_a_whole_file_goes_before_a_stale_index(golden: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(golden / "base")
    model.save_pretrained(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"gone": "model-1.safetensors"}}))
    save_file({"old": torch.ones(7)}, tmp_path / "model-1.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert base_digest(tmp_path) == base_digest(AutoModelForCausalLM.from_pretrained(tmp_path))


def test_without_an_index_it_is_what_lies_there(tmp_path: Path) -> None:
    assert weight_files(tmp_path) == []
    save_file({"a": torch.ones(7)}, tmp_path / "weights.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "weights.safetensors"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "must have a weight_map"),
        ('{"weight_map": []}', "must have a weight_map"),
        ('{"weight_map": {}}', "must have a weight_map"),
        ('{"weight_map": {"a": 3}}', r"3 is no \*\.safetensors file of this folder"),
        ('{"weight_map": {"a": "../m.safetensors"}}', r"is no \*\.safetensors file of this folder"),
        ('{"weight_map": {"a": "model.bin"}}', r"is no \*\.safetensors file of this folder"),
        ("[]", "must hold a mapping"),
        ("{", "is no JSON"),
    ],
    ids=["empty", "list", "no map", "number", "elsewhere", "pickle", "no mapping", "no json"],
)
def test_an_index_that_says_nothing_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / INDEX).write_text(content)
    save_file({"a": torch.ones(7)}, tmp_path / "model-1.safetensors")
    with pytest.raises(InputError, match=rf"{INDEX}: .*{said}"):
        weight_files(tmp_path)
