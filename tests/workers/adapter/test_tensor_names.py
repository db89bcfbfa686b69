"""Copies of whole weights in files: what is damaged, and what others do not know."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from workers.adapter.convert import export_folder
from workers.adapter.files import inspect, read
from workers.adapter.folder import MANIFEST, WEIGHTS
from workers.config.base import InputError

BOTH = ["embed_tokens", "lm_head"]


def test_a_copy_that_is_lost_is_refused(make_adapter: Callable[..., Path]) -> None:
    folder = make_adapter(3, train_also=BOTH)
    tensors = load_file(folder / WEIGHTS)
    del tensors["mixlora.lm_head.weight"]
    save_file(tensors, folder / WEIGHTS)
    (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match="modules_to_save names lm_head, of which it has 0 tens"):
        read(folder)


def test_it_is_told_and_mixlora_does_not_know_it(
    make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter(3, train_also=BOTH)
    assert inspect(folder)["train_also"] == BOTH
    assert inspect(folder)["layers"] == 2
    with pytest.raises(InputError, match="MoE-PEFT knows no train_also"):
        export_folder(folder, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
