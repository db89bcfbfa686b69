"""Copies of whole weights, and rows of tokens, in files: what is damaged, and what others do not
know."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.adapter.convert import export_folder
from workers.adapter.files import inspect, read
from workers.adapter.folder import CONFIG, MANIFEST, WEIGHTS
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


ROWS = "mixlora.embed_tokens.token_adapter.trainable_tokens_delta"
Change = Callable[[dict[str, torch.Tensor], dict[str, object]], object]


def damaged(folder: Path, change: Change) -> Path:
    """With other tensors or another configuration."""
    tensors, values = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    change(tensors, values)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(values))
    (folder / MANIFEST).unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, _: tensors.pop(ROWS), "rows of embed_tokens, but it has those of none"),
        (lambda _, values: values.pop("trainable_token_indices"), f"{ROWS} is no part of a"),
        (
            lambda _, values: values.update(trainable_token_indices={"lm_head": [70, 9]}),
            "rows of lm_head, but it has those of embed_tokens",
        ),
        (
            lambda _, values: values.update(trainable_token_indices=[1, 2, 3]),
            r"embed_tokens.token_rows has shape \[2, 64\], but .* names 3 tokens",
        ),
        (
            lambda _, values: values.update(
                trainable_token_indices={"embed_tokens": [1, 2], "lm_head": [2, 1]}
            ),
            "has other tokens of embed_tokens than of lm_head, which is not supported",
        ),
        (
            lambda _, values: values.update(trainable_token_indices=[4, 4]),
            "train_tokens has 4 twice",
        ),
        (
            lambda _, values: values.update(trainable_token_indices=[-1, 4]),
            "trainable_token_indices.* greater than or equal to 0",
        ),
    ],
)
def test_rows_that_are_not_those_of_the_configuration_are_refused(
    change: Change, said: str, make_adapter: Callable[..., Path]
) -> None:
    folder = damaged(make_adapter(3, train_tokens=[70, 9]), change)
    with pytest.raises(InputError, match=said) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_mixlora_knows_no_rows_of_tokens(make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_adapter(3, train_tokens=[70, 9])
    assert inspect(folder)["train_tokens"] == [70, 9]
    with pytest.raises(InputError, match=r"MoE-PEFT knows no train_tokens \(70, 9\)"):
        export_folder(folder, tmp_path / "theirs")
