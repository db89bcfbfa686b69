"""Spaces: what they suggest, what they refuse."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from orchestrator.config.job import load_job
from search_spaces.space import SearchSpace
from workers.config.base import InputError, override, validated
from workers.config.train import TrainSpec

TRAIN = validated(
    TrainSpec, {"model": {"path": "m"}, "data": {"train": "a", "validation": "b"}}, "test"
)
PRESETS = ("moe_lora", "mixlora_paper", "smoke")


def suggestions(space: SearchSpace, count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """What TPE draws from a space, each trial told a value so that it begins to model."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=count // 2)
    )
    drawn = []
    for number in range(count):
        trial = study.ask()
        drawn.append(space(trial))
        study.tell(trial, float(number % 7))
    return drawn


def space_of(definition: Mapping[str, Any], train: TrainSpec = TRAIN) -> SearchSpace:
    return SearchSpace.resolve(definition, train)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_suggestion_of_a_preset_is_a_valid_run(preset: str) -> None:
    space = space_of_name(preset)
    for values in suggestions(space):
        spec = override(TRAIN, values, preset)
        assert not spec.adapter.selects_nothing
    assert len({str(values) for values in suggestions(space)}) > 20


def space_of_name(name: str) -> SearchSpace:
    return SearchSpace.resolve(name, TRAIN)


def test_one_expert_is_asked_nothing_about_routing() -> None:
    drawn = suggestions(space_of_name("moe_lora"), 80)
    plain = [values for values in drawn if values["adapter.num_experts"] == 1]
    routed = [values for values in drawn if values["adapter.num_experts"] > 1]
    assert plain
    assert routed
    assert all(values["adapter.top_k"] == 1 for values in plain)
    assert not any(path.startswith("loss.") for values in plain for path in values)
    assert all("loss.contrastive_weight" in values for values in routed)
    assert {v["adapter.top_k"] for v in routed if v["adapter.num_experts"] == 8} == {1, 2, 3, 4}
    assert {v["adapter.top_k"] for v in routed if v["adapter.num_experts"] == 4} == {1, 2, 3}


@pytest.mark.parametrize("top_k", [{"int": [2, 4]}, {"choice": [2, 4]}, 4, None])
def test_top_k_is_clipped_to_the_experts_however_it_is_given(top_k: Any) -> None:
    train = override(TRAIN, {"adapter.top_k": 4, "adapter.num_experts": 4}, "test")
    named = {} if top_k is None else {"adapter.top_k": top_k}
    space = space_of({**named, "adapter.num_experts": {"choice": [1, 2, 3, 8]}}, train)
    pairs = {
        (v["adapter.num_experts"], v.get("adapter.top_k", train.adapter.top_k))
        for v in suggestions(space, 80)
    }
    assert all(k == min(k, experts) for experts, k in pairs)
    assert (1, 1) in pairs
    assert (2, 2) in pairs
    assert (8, 4) in pairs


@pytest.mark.parametrize("top_k", [{"int": [1, 4]}, {"choice": [1, 2, 4]}, {"int": [3, 4]}])
@pytest.mark.parametrize("experts", [{"choice": [1, 2, 3, 8]}, {"choice": [[2, 4], 8]}, 4])
def test_below_keeps_top_k_under_the_experts(top_k: Any, experts: Any) -> None:
    space = space_of(
        {
            "adapter.top_k": {**top_k, "below": "adapter.num_experts"},
            "adapter.num_experts": experts,
            "optimizer.lr": {"log": [1e-4, 1e-2]},
        }
    )
    for values in suggestions(space, 60):
        adapter = override(TRAIN, values, "test").adapter
        assert (
            adapter.top_k < min(adapter.expert_counts)
            or max(adapter.expert_counts) == 1
            or (adapter.top_k == 1)
        )
        assert not adapter.selects_nothing


def test_without_a_space_every_trial_is_the_jobs_own_run() -> None:
    space = SearchSpace.resolve(None, TRAIN)
    assert (suggestions(space, 2), space.varied()) == ([{}, {}], [])
    assert [*space.samples()] == [TRAIN]


def test_below_holds_for_the_jobs_own_experts() -> None:
    space = space_of({"adapter.top_k": {"choice": [1, 8], "below": "adapter.num_experts"}})
    assert {values["adapter.top_k"] for values in suggestions(space)} == {1, 7}


def test_the_demos_space_gives_routers_that_select() -> None:
    job = load_job("demo")
    for values in suggestions(job.search_space()):
        assert not override(job.train, values, "demo").adapter.selects_nothing


def test_the_mixlora_preset_holds_the_published_settings() -> None:
    for values in suggestions(space_of_name("mixlora_paper"), 10):
        spec = override(TRAIN, values, "test")
        adapter = spec.adapter
        assert (adapter.num_experts, adapter.top_k, adapter.rank) == (8, 2, 16)
        assert (adapter.alpha, adapter.dropout, adapter.experts) == (32, 0.05, "block")
        assert spec.loss.contrastive_weight == 0
    space = space_of_name("mixlora_paper")
    assert space.varied() == ["optimizer.lr", "loss.load_balance_weight"]


def test_conditions_named_in_the_space_decide_what_is_asked() -> None:
    space = space_of(
        {
            "adapter.rank": {"choice": [4, 64], "when": {"adapter.experts": "block"}},
            "adapter.use_rslora": {
                "choice": [True, False],
                "when": {"adapter.rank": {"above": 16}},
            },
            "adapter.experts": {"choice": ["block", "linear"]},
        }
    )
    drawn = suggestions(space, 60)
    assert all(("adapter.rank" in v) == (v["adapter.experts"] == "block") for v in drawn)
    assert all(("adapter.use_rslora" in v) == (v.get("adapter.rank", 8) > 16) for v in drawn)
    assert any("adapter.use_rslora" in v for v in drawn)


def test_experts_may_be_numbers_by_layer() -> None:
    space = space_of(
        {
            "adapter.num_experts": {"choice": [1, 4, [1, 4], [2, 4, 6, 8]]},
            "adapter.top_k": {"int": [1, 4]},
            "adapter.shared_a": {"choice": [False, True]},
        }
    )
    drawn = suggestions(space, 80)
    clipped: dict[str, set[int]] = {}
    for values in drawn:
        override(TRAIN, values, "test")
        clipped.setdefault(str(values["adapter.num_experts"]), set()).add(values["adapter.top_k"])
    assert clipped == {"1": {1}, "4": {1, 2, 3, 4}, "[1, 4]": {1}, "[2, 4, 6, 8]": {1, 2}}
    asked = {str(v["adapter.num_experts"]) for v in drawn if "adapter.shared_a" in v}
    assert asked == {"4", "[1, 4]", "[2, 4, 6, 8]"}
    by_layer = override(TRAIN, {"adapter.num_experts": [2, 4]}, "test")
    assert space_of({"loss.z_loss_weight": {"float": [0, 1]}}, by_layer).varied()


def test_each_routing_is_asked_its_own_questions() -> None:
    own = {"top_k": "top_k", "top_p": "top_p", "switch": "expert_capacity"}
    space = space_of(
        {
            "adapter.routing": {"choice": list(own)},
            "adapter.top_k": {"int": [1, 4]},
            "adapter.top_p": {"float": [0.5, 0.9]},
            "adapter.expert_capacity": {"choice": [16, 32]},
            "adapter.gates": {"choice": [None, "raw"]},
            "adapter.gate_scale": {"float": [0.5, 2.0], "when": {"adapter.gates": "raw"}},
            "adapter.use_dora": {"choice": [False, True]},
        }
    )
    drawn = suggestions(space, 60)
    for values in drawn:
        override(TRAIN, values, "test")
        asked = {path for path in values if path.removeprefix("adapter.") in own.values()}
        assert asked == {f"adapter.{own[values['adapter.routing']]}"}
        assert ("adapter.gate_scale" in values) == (values["adapter.gates"] == "raw")
    assert {values["adapter.routing"] for values in drawn} == set(own)
    assert {values["adapter.use_dora"] for values in drawn} == {False, True}


def test_the_training_rows_may_vary() -> None:
    space = space_of({"data.max_rows": {"choice": [100, 200]}, "seed": {"int": [0, 9]}})
    assert {values["data.max_rows"] for values in suggestions(space)} == {100, 200}


def test_lists_fixed_values_and_numbers_without_a_point() -> None:
    text = """
    adapter.target_modules: {choice: [all-linear, [q_proj, v_proj]]}
    adapter.alpha: 32
    optimizer.lr: {log: [1e-4, 1e-2]}
    optimizer.batch_size: {int: [8, 32], step: 8}
    """
    drawn = suggestions(space_of(yaml.safe_load(text)))
    assert {str(v["adapter.target_modules"]) for v in drawn} == {
        "all-linear",
        "['q_proj', 'v_proj']",
    }
    assert {v["adapter.alpha"] for v in drawn} == {32}
    assert {v["optimizer.batch_size"] for v in drawn} <= {8, 16, 24, 32}
    assert all(1e-4 <= v["optimizer.lr"] <= 1e-2 for v in drawn)


def test_equal_seeds_suggest_the_same() -> None:
    space = space_of_name("moe_lora")
    assert suggestions(space, 20, seed=3) == suggestions(space, 20, seed=3)
    assert suggestions(space, 20, seed=3) != suggestions(space, 20, seed=4)


def test_a_space_survives_pickling() -> None:
    space = pickle.loads(pickle.dumps(space_of_name("moe_lora")))
    assert suggestions(space, 5) == suggestions(space_of_name("moe_lora"), 5)


def test_a_file_is_a_space(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer.steps: {choice: [50, 200]}\n")
    space = SearchSpace.resolve(str(file), TRAIN)
    assert max(trial.optimizer.steps or 0 for trial in space.samples()) == 200


BAD = [
    ({"adapter.num_exprts": {"choice": [2]}}, "did you mean num_experts"),
    ({"adaptr.rank": {"choice": [2]}}, "adaptr.rank: no such field"),
    ({"adapter.rank": {"choice": []}}, "choice wants a list"),
    ({"adapter.rank": {"choice": ["many"]}}, "adapter.rank"),
    ({"adapter.rank": {"int": [8, 4]}}, "the range is empty: 8 is above 4"),
    ({"adapter.rank": {"int": [0, 4]}}, "adapter.rank: Input should be greater than 0"),
    ({"adapter.rank": {"int": [1.5, 4]}}, "int wants [LOW, HIGH]"),
    ({"adapter.rank": {"float": [2, 8]}}, "valid integer"),
    ({"adapter.rank": {"int": [4, 8, 16]}}, "int wants [LOW, HIGH]"),
    ({"adapter.rank": {"range": [4, 8]}}, "a range is one of choice, int, float, log"),
    ({"adapter.rank": {"int": [4, 8], "log": [1, 2]}}, "a range is one of"),
    ({"adapter.rank": {"int": [4, 8], "step": 0}}, "step is a whole number"),
    ({"adapter.rank": {"int": [4, 8], "step": 5}}, "step is a whole number"),
    ({"optimizer.lr": {"log": [0, 1]}}, "a log range begins above 0"),
    (
        {"adapter.rank": {"int": [1, 8], "below": "adapter.alpha"}},
        "below is for adapter.top_k only",
    ),
    (
        {"adapter.top_k": {"int": [1, 8], "below": "adapter.rank"}},
        "below is for adapter.top_k only",
    ),
    ({"optimizer.lr": {"log": [1e-4, 1], "step": 2}}, "step goes with int only"),
    ({"optimizer.lr": {"log": [1e-4, True]}}, "log wants [LOW, HIGH]"),
    ({"adapter.dropout": {"float": [0, 1]}}, "less than 1"),
    ({"adapter.experts": {"choice": ["block", "lines"]}}, "adapter.experts"),
    ({"adapter": {"rank": {"choice": [4]}}}, "adapter: a range is one of"),
    ({"model.path": {"choice": ["a", "b"]}}, "set by the job"),
    ({"parallel.workers": {"choice": [1, 2]}}, "set by the job"),
    ({"data.validation": {"choice": ["a", "b"]}}, "set by the job"),
    ({"data.max_length": {"choice": [64, 128]}}, "may vary adapter, loss, optimizer, seed, data.t"),
    ({"optimizer.batch_size": {"int": [4, 8]}, "optimizer.micro_batch_size": 4}, "divide"),
    ({"optimizer.warmup_steps": {"int": [0, 500]}}, "must be below steps"),
    ({"adapter.rank": {"int": [4, 8], "when": 3}}, "when is a mapping"),
    ({"adapter.rank": {"int": [4, 8], "when": {"adapter.ranks": 1}}}, "adapter.ranks"),
    ({"adapter.rank": {"int": [4, 8], "when": {"adapter.alpha": {"over": 1}}}}, "above, below, in"),
    ({"adapter.rank": {"int": [4, 8], "when": {"adapter.alpha": {"above": "x"}}}}, "a number"),
    ({"adapter.rank": {"int": [4, 8], "when": {"adapter.experts": {"above": 1}}}}, "no number"),
    (
        {
            "adapter.rank": {"int": [4, 8], "when": {"adapter.alpha": {"above": 1}}},
            "adapter.alpha": {"float": [1, 8], "when": {"adapter.rank": {"above": 1}}},
        },
        "in a circle",
    ),
    ({}, "names at least one"),
    ([1], "names at least one"),
    ("moe_lra", "did you mean moe_lora"),
    ("no/such/file.yaml", "presets are mixlora_paper, moe_lora, smoke"),
]


@pytest.mark.parametrize(("definition", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_bad_space_is_refused_in_one_line(definition: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        SearchSpace.resolve(definition, TRAIN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trials_are_not_compared_on_rows_of_their_own() -> None:
    held_out = override(TRAIN, {"data.validation.share": 0.1}, "test")
    with pytest.raises(InputError, match=r"search\.space: data\.train: cannot vary where"):
        SearchSpace.resolve({"data.train": {"choice": ["a", "b"]}}, held_out)
    SearchSpace.resolve({"data.train": "a", "data.max_rows": {"choice": [5, 9]}}, held_out)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="is no YAML"):
        SearchSpace.resolve(str(tmp_path / "bad.yaml"), TRAIN)


@pytest.mark.parametrize(
    "written",
    [
        {"choice": "s3://me:topmost@bucket/x"},
        {"float": ["s3://me:topmost@bucket/x", 1]},
        {"choice": ["s3://me:topmost@bucket/x"]},
        {"choice": [["s3://me:topmost@bucket/x"]]},
        {"choice": [[["s3://me:topmost@bucket/x"]]]},
    ],
)
def test_what_is_wrong_is_said_without_its_password(written: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        space_of({"data.train": written})
    assert "topmost" not in str(caught.value)


def test_one_expert_is_asked_no_rate_of_its_router() -> None:
    definition = {
        "adapter.num_experts": {"choice": [1, 4]},
        "optimizer.router_lr_ratio": {"choice": [0, 0.1, 1]},
        "optimizer.loraplus_lr_ratio": {"log": [1, 16]},
    }
    drawn = suggestions(space_of(definition), 40)
    for values in drawn:
        asked = "optimizer.router_lr_ratio" in values
        assert asked == (values["adapter.num_experts"] > 1)
        assert "optimizer.loraplus_lr_ratio" in values
    assert {v.get("optimizer.router_lr_ratio") for v in drawn} == {None, 0, 0.1, 1}
