"""What is refused before a cluster starts."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from peft import LoraConfig, get_peft_model
from ray.tune.utils.util import flatten_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM

from orchestrator.config.job import JobSpec, override_job
from orchestrator.tuning.preflight import preflight, remarks
from tests.orchestrator.postgres import Postgres
from workers.config.base import InputError
from workers.config.metrics import reported
from workers.config.train import TrainSpec
from workers.models.compatibility import check_fit
from workers.run.record import RunPlan
from workers.train.loop import TrainingRun


@pytest.fixture
def good(make_spec: Callable[..., TrainSpec], tmp_path: Path) -> JobSpec:
    """A job with nothing wrong in it."""
    return JobSpec.model_validate(
        {
            "name": "tiny",
            "train": make_spec().model_dump(),
            "search": {"space": "smoke"},
            "cluster": {"storage": str(tmp_path / "runs")},
        }
    )


FIXED = {"search.space": {"optimizer.lr": {"log": [1e-3, 1e-2]}}}
"""Every trial has a router."""
BAD = [
    ({"search.space": "smoke2"}, "did you mean smoke"),
    ({"search.metric": "validation/los"}, "did you mean validation/loss"),
    ({"search.metric": "accuracy"}, "trials report validation/loss, train/loss"),
    ({"search.metric": "validation/score", "search.mode": "max"}, "no such metric"),
    ({"search.metric": "validation/tasks/cal/loss"}, "did you mean validation/tasks/call/loss"),
    ({"search.metric": "train/load_balance"}, "not every trial reports it: not one with adapter."),
    (
        {**FIXED, "search.metric": "validation/routing/layers.2.mlp/entropy"},
        "did you mean validation/routing/layers.1.mlp/entropy?",
    ),
    ({**FIXED, "search.metric": "train/load_balance", "search.mode": "max"}, "write mode: min"),
    ({"checkpoint.upload": "tape://x"}, "checkpoint.upload tape://x: cannot be used"),
    ({"checkpoint.upload": "file:///proc/x"}, "checkpoint.upload /proc/x: cannot be written"),
    (
        {"adapter.train_tokens": ["a", "<tool>"]},
        "adapter.train_tokens: '<tool>' is no token of the base's tokenizer",
    ),
    ({"search.mode": "max"}, "better when it is smaller: write mode: min"),
    (
        {"search.metric": "validation/score", "evaluation.generate": True},
        "better when it is larger: write mode: max",
    ),
    (
        {"search.space": {"optimizer.name": {"choice": ["adamw", "paged_adamw_8bit"]}}},
        "optimizer.name is paged_adamw_8bit, which needs ",
    ),
    (
        {"model.attention": "flash_attention_2", "model.dtype": "bfloat16"},
        "model.attention is flash_attention_2, which needs a GPU; sdpa and eager do not",
    ),
    ({"model.path": "/no/such/model"}, "/no/such/model"),
    ({"data.train": "/no/such/rows.jsonl"}, "/no/such/rows.jsonl"),
    ({"data.target_column": "answers"}, "answers"),
    (
        {"data.metrics": {"cal": "slot_f1"}},
        "data.metrics: no row is of task 'cal'; did you mean call",
    ),
    ({"data.metrics": {"call": "rouge_l"}}, "line 1: its metric is slot_f1, but data.metrics says"),
    (
        {"data.metric_column": "none", "data.metrics": {"room": "number_match"}},
        "line 2: metric number_match wants a number in the answer, but no row of task 'room'",
    ),
    (
        {"data.metric_column": "none", "data.metrics": {"call": "acc"}},
        "line 1: metric acc wants `choices`",
    ),
    ({"search.cpus_per_worker": 4096}, "a trial wants 1 worker of 4096 CPUs; this machine has"),
    ({"cluster.storage": "/dev/null/runs"}, "is a file, not a folder"),
    ({"cluster.storage": "/proc/runs"}, "cannot be written"),
    ({"cluster.storage": "s3://bucket/runs"}, "is a URL; give a folder"),
    ({"cluster.store": "sqlite://"}, "a database in memory"),
    ({"cluster.store": "nonsense"}, "is no SQLAlchemy URL"),
    ({"cluster.store": "postgresql+nodriver://host/db"}, "no driver"),
    ({"cluster.store": "mysql+pymysql://host/db"}, "is neither PostgreSQL nor SQLite"),
    ({"cluster.store": "sqlite:////no/such/folder/db"}, "cannot be used"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    changes: dict[str, Any], message: str, good: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError) as caught:
        preflight(override_job(good, changes, "test"), resume=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(good.cluster.storage).exists()


def test_a_base_with_an_adapter_beside_it_is_refused(
    good: JobSpec, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(base)
    job = override_job(good, {"model.path": str(base)}, "test")
    with pytest.raises(InputError, match=r"base: holds an adapter \(adapter_config\.json\)"):
        preflight(job)


def test_ids_beyond_the_embedding_are_refused(
    good: JobSpec, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(base)
    job = override_job(good, {"model.path": str(base)}, "test")
    with pytest.raises(
        InputError, match=r"token 'newword' has id \d+, but its embedding has \d+ r"
    ):
        preflight(job)


def test_a_base_that_does_not_keep_packed_rows_apart_is_refused(
    good: JobSpec, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    config = BloomConfig(vocab_size=260, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(base)
    job = override_job(good, {"model.path": str(base), "adapter.experts": "linear"}, "test")
    preflight(job)
    with pytest.raises(InputError, match="BloomForCausalLM does not support it; allowed"):
        preflight(override_job(job, {"model.attention": "sdpa"}, "test"))
    with pytest.raises(InputError, match=r"data\.packing: BloomForCausalLM does not keep packed"):
        preflight(override_job(job, {"data.packing": True}, "test"))
    preflight(override_job(good, {"data.packing": True}, "test"))


def test_of_a_stream_only_the_first_rows_are_looked_at(good: JobSpec, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    known = Path(good.train.data.train).read_text()
    rows.write_text(known + '{"prompt": "p", "target": ""}\n')
    changes = {"data.train": str(rows), "data.streaming": True, "data.streaming_buffer": 16}
    counts = preflight(override_job(good, changes, "test"))
    assert (counts["train"].rows, counts["train"].source) == (16, f"{rows}, streamed")
    with pytest.raises(InputError, match=r"rows\.jsonl: line 17: its target is empty"):
        preflight(override_job(good, changes | {"data.streaming_buffer": 17}, "test"))
    with pytest.raises(InputError, match="no row is of task 'quiz'; there are "):
        preflight(override_job(good, changes | {"data.metrics": {"quiz": "acc"}}, "test"))


def test_a_good_job_passes_and_leaves_nothing(good: JobSpec) -> None:
    preflight(good)
    preflight(good, resume=False)
    task = {"search.metric": "validation/tasks/call/value", "search.mode": "max"}
    preflight(override_job(good, {**task, "evaluation.generate": True}, "test"))
    assert not Path(good.cluster.storage).exists()


ALL_LOSSES = {"loss.z_loss_weight": 1e-3, "loss.contrastive_weight": 0.01}


def test_what_is_known_of_metrics_is_what_a_run_reports(good: JobSpec, tmp_path: Path) -> None:
    spec = override_job(good, {**ALL_LOSSES, "evaluation.generate": True}, "test").train
    report = TrainingRun(spec, RunPlan(tmp_path, "study")).advance()
    numbers = {path for path, one in flatten_dict(report).items() if isinstance(one, int | float)}
    routers = check_fit(spec).routers(spec.adapter)
    assert routers == ["layers.0.mlp", "layers.1.mlp"]
    assert sorted(reported(spec, ["call", "room"], routers)) == sorted(numbers)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("train/load_balance", "min"),
        ("train/contrastive", "min"),
        ("train/grad_norm", "min"),
        ("train/tokens_per_second", "max"),
        ("validation/tasks/call/loss", "min"),
        ("validation/routing/layers.1.mlp/entropy", "min"),
        ("validation/routing/layers.0.mlp/entropy", "max"),
    ],
)
def test_every_metric_that_trials_report_may_be_the_searchs(
    metric: str, mode: str, good: JobSpec
) -> None:
    asked = {"search.metric": metric, "search.mode": mode}
    preflight(override_job(good, {**FIXED, **ALL_LOSSES, **asked}, "test"))


def test_the_uploads_place_is_tried_and_left_as_it_was(good: JobSpec, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/new/bucket?use_mmap=true"
    preflight(override_job(good, {"checkpoint.upload": place}, "test"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, False),
        (FIXED, False),
        ({**FIXED, "adapter.top_k": 4}, True),
        ({**FIXED, "adapter.num_experts": 1, "adapter.top_k": 1}, False),
        ({"search.space": {"adapter.num_experts": {"choice": [2, 4]}}}, True),
        ({"search.space": {"adapter.top_k": {"int": [1, 4]}}}, True),
        ({**FIXED, "adapter.top_k": 4, "adapter.routing": "top_p"}, False),
    ],
)
def test_a_router_that_selects_nothing_is_remarked_on(
    changes: dict[str, Any], said: bool, good: JobSpec
) -> None:
    found = remarks(override_job(good, changes, "test"))
    assert bool(found) == said
    assert all("selects nothing" in one and "\n" not in one for one in found)


def test_the_last_row_is_looked_at_too_and_what_rows_lose_is_counted(
    good: JobSpec, tmp_path: Path
) -> None:
    row = {"prompt": "say it", "target": "it"}
    long = row | {"target": "t" * 130}
    rows = [row] * 40 + [long]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in rows))
    for place in ("train", "validation"):
        changes = {f"data.{place}": str(source)}
        with pytest.raises(InputError, match=r"rows\.jsonl: line 41: its target has 131 tokens"):
            preflight(override_job(good, changes, "test"), resume=False)
    both = {"data.train": str(source), "data.validation": str(source), "data.too_long": "skip"}
    counts = preflight(override_job(good, both, "test"))
    assert {(one.rows, one.skipped) for one in counts.values()} == {(40, 1)}


def test_a_metric_of_the_job_is_what_a_run_reports(good: JobSpec, tmp_path: Path) -> None:
    named = {"data.metric_column": "none", "data.metrics": {"call": "slot_f1", "room": "acc"}}
    job = override_job(good, {**named, "evaluation.generate": True}, "test")
    preflight(job)
    report = TrainingRun(job.train, RunPlan(tmp_path, "study")).advance()
    tasks = report["validation"]["tasks"]
    assert {task: one["metric"] for task, one in tasks.items()} == named["data.metrics"]


def test_a_source_that_trials_may_take_is_looked_at(good: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "target": ""}\n')
    choice = [good.train.data.train, str(tmp_path / "bad.jsonl")]
    job = override_job(good, {"search.space": {"data.train": {"choice": choice}}}, "test")
    with pytest.raises(InputError, match=r"bad\.jsonl: line 1: its target is empty"):
        preflight(job)


def test_a_new_database_is_not_made_by_looking(good: JobSpec, tmp_path: Path) -> None:
    elsewhere = override_job(good, {"cluster.store": f"sqlite:///{tmp_path}/new.db"}, "test")
    preflight(elsewhere, resume=False)
    with pytest.raises(InputError, match="no studies there yet"):
        preflight(elsewhere, resume=True)
    assert not (tmp_path / "new.db").exists()


def test_tables_are_not_made_by_looking(good: JobSpec, postgres: Postgres) -> None:
    store = postgres.new_store()
    preflight(override_job(good, {"cluster.store": store}, "test"), resume=False)
    engine = sa.create_engine(store)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_full_disk_is_refused(good: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 2**20))
    with pytest.raises(InputError, match="the disk is full: 1 MiB free"):
        preflight(good)


@pytest.mark.skipif(os.cpu_count() == 1, reason="wants two cores")
def test_a_cluster_of_its_own_size_is_not_measured_here(good: JobSpec) -> None:
    changes = {"search.cpus_per_worker": 4096, "cluster.address": "auto"}
    preflight(override_job(good, changes, "test"), resume=False)
