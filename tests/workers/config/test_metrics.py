"""The paths of figures: which there are, which way is better, and how one is read."""

from collections.abc import Callable
from unittest.mock import patch

import pytest

from workers.config.losses import AUXILIARY, AuxiliaryLoss
from workers.config.metrics import (
    METRICS,
    Metric,
    better_when,
    expert_load,
    is_better,
    of_validation,
    rank,
    reported,
    value_at,
)
from workers.config.train import TrainSpec


@pytest.mark.parametrize(
    ("path", "better"),
    [
        ("validation/loss", "min"),
        ("validation/score", "max"),
        ("validation/tasks/call/loss", "min"),
        ("validation/tasks/a/b {x}/value", "max"),
        ("validation/tasks/loss/rows", None),
        ("validation/routing/layers.0.mlp/entropy", None),
        ("train/z_loss", "min"),
        ("train/tokens_per_second", "max"),
        ("train/lr", None),
        ("train/nonsense", None),
        ("validation/loss/more", None),
        ("loss", None),
        ("validation/tasks//value", None),
    ],
)
def test_which_way_a_metric_is_better(path: str, better: str | None) -> None:
    assert better_when(path) == better


def test_a_run_reports_what_it_measures(make_spec: Callable[..., TrainSpec]) -> None:
    plain = reported(make_spec(adapter__num_experts=1, adapter__top_k=1))
    assert plain[:3] == ["validation/loss", "train/loss", "train/cross_entropy"]
    assert not {"train/load_balance", "validation/score"} & {*plain}
    spec = make_spec(loss__z_loss_weight=0.1, evaluation__generate=True)
    whole = reported(spec, ["home", "a/b"], ["layers.1.mlp"])
    assert {"train/load_balance", "train/z_loss", "validation/score"} <= {*whole}
    assert "train/contrastive" not in whole
    assert [path for path in whole if "/tasks/" in path and path.endswith("value")] == [
        "validation/tasks/home/value",
        "validation/tasks/a/b/value",
    ]
    assert whole[-1] == "validation/routing/layers.1.mlp/entropy"
    shared = make_spec(parallel__workers=2, parallel__ep_size=2)
    assert "train/exchanged_bytes_per_step" in reported(shared)
    assert "train/exchanged_bytes_per_step" not in whole


def test_a_new_metric_or_loss_is_known_at_once_and_gone_again(
    make_spec: Callable[..., TrainSpec],
) -> None:
    spec = make_spec()
    with patch.dict(METRICS, {"train/watts": Metric("min", lambda spec: spec.seed == 0)}):
        assert better_when("train/watts") == "min"
        assert "train/watts" in reported(spec)
        assert "train/watts" not in reported(make_spec(seed=1))
    assert better_when("train/watts") is None
    assert "train/watts" not in reported(spec)
    loss = AuxiliaryLoss("a:b", "z_loss_weight", "")
    with patch.dict(AUXILIARY, {"toy": loss}):
        assert better_when("train/toy") == "min"
        assert "train/toy" in reported(make_spec(loss__z_loss_weight=1.0))
    assert better_when("train/toy") is None


@pytest.mark.parametrize(
    ("mode", "better", "worse"), [("min", 0.1, 0.2), ("max", 0.2, 0.1), ("min", -2.0, 1.0)]
)
def test_what_is_better_comes_first(mode: str, better: float, worse: float) -> None:
    assert is_better(better, worse, mode)
    assert not is_better(worse, better, mode)
    assert not is_better(better, better, mode)
    assert sorted([worse, better], key=lambda value: rank(value, mode)) == [better, worse]


def test_short_names_of_what_is_measured_on_validation_rows() -> None:
    assert of_validation("loss") == "validation/loss"
    assert of_validation("score") == "validation/score"
    assert of_validation("a/{b}") == "validation/tasks/a/{b}/value"


def test_values_in_nested_reports() -> None:
    metrics = {"validation": {"loss": 1.5, "tasks": {"a/b": {"value": 2}, "a": {"metric": "x"}}}}
    assert value_at(metrics, "validation/loss") == 1.5
    assert value_at(metrics, "validation/tasks/a/b/value") == 2
    assert value_at(metrics, "validation/tasks/a/metric") is None
    assert value_at(metrics, "validation") is None
    assert value_at(metrics, "train/loss") is None
    assert value_at({"validation/loss": 1}, "validation/loss") == 1
    assert value_at({"validation": {"loss": True}}, "validation/loss") is None


def test_the_load_of_experts_in_a_report() -> None:
    routing = {"layers.0.mlp": {"load": [0.25, 0.75], "entropy": 0.8}}
    assert expert_load({"validation": {"routing": routing}}) == {"layers.0.mlp": (0.25, 0.75)}
    assert expert_load({"step": 1}) == {}
