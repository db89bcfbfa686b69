"""What each optimizer reads, where it runs, and what is refused before anything starts."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from workers.config.base import InputError
from workers.config.optimizers import OPTIMIZERS, check_gpu, check_installed
from workers.config.train import OptimizerSpec, TrainSpec

SpecMaker = Callable[..., TrainSpec]
PACKED = [name for name in OPTIMIZERS if name.endswith("_8bit")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer__name": "adamw8"}, r"optimizer.name: .*'adamw', 'adam'.*not 'adamw8'"),
        ({"optimizer__momentum": 0.9}, "momentum is 0.9, but is for sgd and rmsprop, not adamw"),
        ({"optimizer__name": "sgd", "optimizer__betas": [0.9, 0.95]}, "but sgd has none"),
        ({"optimizer__name": "adafactor", "optimizer__betas": [0.8, 0.999]}, "adafactor has none"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    make_spec: SpecMaker, changes: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        make_spec(**changes)


@pytest.mark.parametrize("name", [*PACKED, "adafactor"])
@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"strategy": "fsdp2"}, "but parallel.strategy is fsdp2; it must be ddp$"),
        ({"strategy": "deepspeed"}, "but parallel.strategy is deepspeed; it must be ddp$"),
        ({"workers": 2, "ep_size": 2}, "but parallel.ep_size is 2; it must be 1"),
    ],
)
def test_what_cannot_lie_in_shards_is_refused_there(
    make_spec: SpecMaker, name: str, layout: Mapping[str, Any], said: str
) -> None:
    assert make_spec(optimizer__name=name).optimizer.name == name
    with pytest.raises(InputError, match=f"optimizer.name is {name}, {said}"):
        make_spec(optimizer__name=name, parallel=layout)


def test_adagrad_is_refused_with_deepspeed_alone(make_spec: SpecMaker) -> None:
    make_spec(optimizer__name="adagrad", parallel__strategy="fsdp2")
    with pytest.raises(InputError, match=r"it must be ddp or fsdp2$"):
        make_spec(optimizer__name="adagrad", parallel__strategy="deepspeed")


def test_lion_has_its_own_decay_rates_where_the_job_names_none() -> None:
    assert OptimizerSpec(name="lion_8bit").decay_rates == (0.9, 0.99)
    assert OptimizerSpec(name="lion_8bit", betas=(0.95, 0.98)).decay_rates == (0.95, 0.98)
    assert OptimizerSpec().decay_rates == (0.9, 0.999)
    assert OptimizerSpec(name="sgd").decay_rates is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.config.optimizers.find_spec", lambda name: None)
    check_installed("adamw")
    for name in PACKED:
        with pytest.raises(InputError, match=rf"{name}, which needs bitsandbytes: .*quantized"):
            check_installed(name)


def test_paged_ones_need_a_gpu(make_spec: SpecMaker) -> None:
    said = "paged_lion_8bit, which needs a GPU; lion_8bit does not"
    with pytest.raises(InputError, match=said):
        check_gpu("paged_lion_8bit", has_gpu=False)
    check_gpu("paged_lion_8bit", has_gpu=True)
    check_gpu("lion_8bit", has_gpu=False)
    with pytest.raises(InputError, match=said):
        make_spec(optimizer__name="paged_lion_8bit", model__device="cpu")
