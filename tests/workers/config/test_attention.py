"""Where a way to compute attention is refused before anything is loaded."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from workers.config.attention import ATTENTION, check_attention_here, is_flash, is_plain
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.config.train import TrainSpec

SpecMaker = Callable[..., TrainSpec]
FLASH = ["flash_attention_2", "flash_attention_3"]
ON_GPUS = [*FLASH, "flex_attention"]


def test_what_they_are() -> None:
    assert [name for name in ATTENTION if is_flash(name)] == FLASH
    assert [name for name in ATTENTION if not is_plain(name)] == ON_GPUS
    assert is_plain("auto")
    assert not is_flash("auto")


@pytest.mark.parametrize("name", ["auto", "sdpa", "eager"])
def test_plain_ones_need_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.config.attention.find_spec", lambda _: None)
    check_attention_here(name, has_gpu=False)


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_gpu_is_wanted(name: str, make_spec: SpecMaker) -> None:
    with pytest.raises(InputError, match=f"{name}, which needs a GPU; sdpa and eager do not"):
        check_attention_here(name, has_gpu=False)
    with pytest.raises(InputError, match=r"which needs a GPU, but device is cpu"):
        make_spec(model__attention=name, model__dtype="bfloat16", model__device="cpu")


@pytest.mark.parametrize("name", FLASH)
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.config.attention.find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"{name}, which needs the package flash-attn.*auto$"):
        check_attention_here(name, has_gpu=True)
    monkeypatch.setattr("workers.config.attention.find_spec", lambda _: object())
    check_attention_here(name, has_gpu=True)


@pytest.mark.parametrize("name", FLASH)
def test_flash_attention_wants_half_precision(name: str) -> None:
    with pytest.raises(ValidationError, match="half precision, but dtype is float32; it must be"):
        ModelSpec.model_validate({"path": "x", "attention": name, "dtype": "float32"})
    ModelSpec.model_validate({"path": "x", "attention": name})
    ModelSpec.model_validate({"path": "x", "attention": name, "dtype": "bfloat16"})


def test_packed_rows_want_one_that_keeps_them_apart(make_spec: SpecMaker) -> None:
    with pytest.raises(InputError, match=r"flex_attention, which keeps packed rows together"):
        make_spec(model__attention="flex_attention", data__packing=True)
    for name in ("auto", "sdpa", "eager"):
        make_spec(model__attention=name, data__packing=True)
    make_spec(model__attention=FLASH[0], model__dtype="bfloat16", data__packing=True)
