"""What `check` says of a job's epochs, memory and time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.inventory import Inventory, Node
from orchestrator.config.job import JobSpec, override_job
from orchestrator.report.earlier import EarlierTrials
from orchestrator.report.estimate import JobEstimate, job_estimate
from workers.config.base import InputError
from workers.config.train import TrainSpec
from workers.train.measure import MeasuredSteps, Timed


@pytest.fixture
def job(make_spec: Callable[..., TrainSpec], tmp_path: Path) -> JobSpec:
    space = {
        "adapter.num_experts": {"choice": [1, 4]},
        "adapter.rank": {"int": [2, 8]},
        "optimizer.lr": {"log": [1e-3, 1e-2]},
    }
    return JobSpec.model_validate(
        {
            "name": "tiny",
            "train": make_spec().model_dump(),
            "search": {"space": space, "trials": 3},
            "cluster": {"storage": str(tmp_path / "runs")},
        }
    )


def test_memory_is_that_of_the_largest_trial(job: JobSpec) -> None:
    found = job_estimate(job)
    assert not isinstance(found.memory, str)
    assert found.largest["adapter.num_experts"] == 4, "one has no router"
    assert "optimizer.lr" not in found.largest, "it fills no memory"
    for experts, rank in ((1, 2), (1, 8), (4, 2), (4, 8)):
        space = {"adapter.num_experts": experts, "adapter.rank": rank}
        other = job_estimate(override_job(job, {"search.space": space}, "test"))
        assert not isinstance(other.memory, str)
        assert other.memory.total <= found.memory.total
        assert other.largest == {}
    told = found.as_dict()
    assert told["memory"]["trial"] == found.largest
    assert told["same_rows"] == {"rows": 16, "of": 16, "first": told["same_rows"]["first"]}
    assert told["measured"] is None
    same, epoch, memory = found.lines()
    assert same.startswith("16 of 16 validation rows are training rows too (the first: ")
    assert epoch.startswith("an epoch is 2 steps; 4 steps are 2 epochs; padding is ")
    assert memory.startswith("a worker holds about ")
    assert "in the largest trial (adapter.num_experts 4, adapter.rank " in memory
    assert "this is an estimate" in memory


def test_tokens_to_be_trained_that_no_row_has_are_named(job: JobSpec) -> None:
    """A special one that rows spell out is text."""
    tokens = {"train.adapter.train_tokens": ["e", "<|im_end|>", "<|pad|>", 255]}
    found = job_estimate(override_job(job, tokens, "test"))
    assert found.unseen_tokens == ("<|pad|>", "255")
    assert found.as_dict()["unseen_tokens"] == ["<|pad|>", "255"]
    assert "no training row has <|pad|>, 255 (adapter.train_tokens)" in "\n".join(found.lines())
    assert job_estimate(job).unseen_tokens == ()


def test_a_pack_holds_its_base_once(job: JobSpec) -> None:
    there = Inventory((Node("0", "host", 1, 0, 10**11),))
    packed = override_job(job, {"search.pack": 3, "search.max_concurrent": 3}, "test")
    found = job_estimate(packed, there)
    one, pack = found.memory, found.pack
    assert not isinstance(one, str)
    assert pack
    held = pack.memory
    assert (held.base, held.data) == (one.base, one.data)
    assert (held.adapter, held.optimizer) == (3 * one.adapter, 3 * one.optimizer)
    assert one.total < held.total < 3 * one.total
    known = {"trials": 3, "room": 10**11, "most": 3}
    assert found.as_dict()["pack"] == {**held.as_dict(), **known}
    *_, told = found.lines()
    assert told.startswith("one trial takes ")
    assert ", a pack of 3 such trials " in told
    assert told.endswith(" of 100 GB that a worker has")
    *_, tight = job_estimate(packed, Inventory((Node("0", "host", 1, 0, 10**9),))).lines()
    assert tight.endswith(" of 1 GB that a worker has; about 1 fits")
    auto = override_job(packed, {"search.pack": "auto"}, "test")
    *_, single = job_estimate(auto, Inventory((Node("0", "host", 1, 0, 10**9),))).lines()
    assert single == "search.pack auto gives each trial a base of its own"
    assert job_estimate(job, there).as_dict()["pack"] is None


def test_trials_of_before_tell_how_long_it_will_take(job: JobSpec) -> None:
    assert job_estimate(job).as_dict()["earlier"] is None
    earlier = EarlierTrials("before", 5, 0.5, at_once=2)
    found = replace(job_estimate(job), earlier=earlier)
    *_, told = found.lines()
    assert told == (
        "3 trials of 4 steps would take about 4 s, if none is stopped early: 5 such trials of "
        "study before took 0.5 s a step, 2 at a time"
    )
    assert found.as_dict()["earlier"]["seconds"] == 4


def test_memory_is_estimated_with_what_a_workers_gpu_computes(job: JobSpec) -> None:
    """This node has none."""
    one = {"search.space": {"adapter.rank": 2}, "train.model.device": "auto"}
    job = override_job(job, one, "test")
    on_gpus = {"search.gpus_per_worker": 1}
    here = job_estimate(override_job(job, {"train.model.device": "cpu"}, "test"))
    there = job_estimate(override_job(job, on_gpus, "test"))
    assert not isinstance(here.memory, str)
    assert not isinstance(there.memory, str)
    assert there.memory.base * 2 == here.memory.base
    assert there.memory.adapter == here.memory.adapter, "always float32"
    assert [here.as_dict()["memory"]["dtype"], there.as_dict()["memory"]["dtype"]] == [
        "float32",
        "bfloat16",
    ]
    *_, told = here.lines()
    assert "with the base in float32, beside" in told
    *_, told = there.lines()
    assert "with the base in bfloat16 if its GPU computes that, else in float32, beside" in told
    asked = job_estimate(override_job(job, {**on_gpus, "train.model.dtype": "float32"}, "test"))
    assert asked.memory == here.memory


def test_of_a_stream_the_first_rows_tell_what_they_can(job: JobSpec) -> None:
    stored = job_estimate(job)
    streamed = override_job(job, {"train.data.streaming": True}, "test")
    found = job_estimate(streamed)
    assert found.memory == stored.memory, "all of its rows are in one window"
    assert found.as_dict()["epoch"] | {"steps": 2, "epochs": 2.0} == stored.as_dict()["epoch"]
    assert (found.epoch.steps, found.epoch.epochs) == (None, None)
    _, epoch, _ = found.lines()
    assert epoch.startswith("rows are streamed, and only the first were looked at; padding is ")


def test_the_largest_trial_has_the_optimizer_that_keeps_most(job: JobSpec) -> None:
    space = {"optimizer.name": {"choice": ["sgd", "adam", "adagrad"]}}
    found = job_estimate(override_job(job, {"search.space": space}, "test"))
    assert not isinstance(found.memory, str)
    assert found.largest == {"optimizer.name": "adam"}
    assert found.memory.optimizer == 2 * found.memory.adapter


@pytest.mark.parametrize("packing", [False, True])
def test_steps_are_measured_here_on_real_rows(job: JobSpec, packing: bool) -> None:
    job = override_job(job, {"train.data.packing": packing}, "test")
    found = job_estimate(job, measure=True)
    assert (found.epoch.padding_share == 0) == packing
    assert found.measured is not None
    usual, longest = found.measured.usual, found.measured.longest
    assert 0 < usual.positions <= longest.positions
    assert usual.seconds > 0
    *_, said = found.lines()
    assert said.startswith("measured on this machine: a step of one worker on its CPU takes ")
    assert "3 trials of 4 steps would take at most " in said
    step = found.measured.seconds(found.epoch.positions_per_step)
    assert found.as_dict()["measured"]["seconds"] == pytest.approx(12 * step)


@pytest.mark.parametrize(
    ("positions", "seconds"), [(100, 1.0), (200, 3.0), (150, 2.0), (300, 5.0), (50, 0.5)]
)
def test_other_steps_are_between_the_measured_or_in_proportion(
    positions: float, seconds: float
) -> None:
    measured = MeasuredSteps(Timed(100, 1.0), Timed(200, 3.0), "CPU")
    assert measured.seconds(positions) == pytest.approx(seconds)


def test_rows_of_one_length_are_in_proportion() -> None:
    measured = MeasuredSteps(Timed(100, 1.0), Timed(100, 1.1), "CPU")
    assert measured.seconds(200) == pytest.approx(2)


def test_a_model_whose_layers_do_not_run_alone_has_no_estimate(
    job: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> JobEstimate:
        raise InputError("its layers do not run alone: they want more")

    monkeypatch.setattr("workers.models.memory.probe", broken)
    found = job_estimate(job)
    assert found.as_dict()["memory"] == {"unknown": "its layers do not run alone: they want more"}
    assert list(found.lines())[-1] == (
        "a worker's memory is not estimated: its layers do not run alone: they want more"
    )
