"""Job specifications, away from where they were written."""

from pathlib import Path

import pytest
import yaml

from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec, dump_job, load_job, override_job, portable
from orchestrator.config.serve import ServeSpec
from orchestrator.replicas.endpoint import EndpointSpec
from orchestrator.retraining.policy import load_policy
from workers.config.base import InputError
from workers.config.model import ModelSpec


@pytest.mark.parametrize(
    ("store", "url"),
    [
        (None, "sqlite:///{here}/runs/moetune.db"),
        ("sqlite:///my.db", "sqlite:///{here}/my.db"),
        ("sqlite+pysqlite:///a/my.db?timeout=3", "sqlite+pysqlite:///{here}/a/my.db?timeout=3"),
        ("sqlite:////srv/my.db", "sqlite:////srv/my.db"),
        ("sqlite://", "sqlite://"),
        ("postgresql://me@host/my.db", "postgresql://me@host/my.db"),
    ],
)
def test_a_database_is_one_wherever_a_process_runs(
    store: str | None, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ClusterSpec(store=store).store_url() == url.format(here=tmp_path)


def test_a_portable_job_has_no_relative_path(
    job: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    cluster = ClusterSpec(storage="runs", store="sqlite:///my.db", address="head:6379")
    job = override_job(job, {"start_from": "adapter"}, "test")
    moved = portable(job.model_copy(update={"cluster": cluster}))
    assert moved.train.start_from == f"{tmp_path}/adapter"
    assert moved.train.model.path == f"{tmp_path}/base"
    assert moved.train.data.train == f"{tmp_path}/train.jsonl"
    assert moved.cluster.storage == f"{tmp_path}/runs"
    assert moved.cluster.store == f"sqlite:///{tmp_path}/my.db"
    assert moved.cluster.address == "head:6379"
    assert moved.search.space == job.search_space().definition
    assert portable(moved) == moved
    without = override_job(moved, {"search.space": None}, "test")
    assert portable(without) == without


SECRET = "postgresql://me:topmost@host/db"
BARE = "postgresql://me@host/db"


@pytest.mark.parametrize("store", [SECRET, f"{BARE}?password=topmost"])
def test_a_password_in_a_job_is_refused_unseen(store: str, job: JobSpec) -> None:
    with pytest.raises(InputError, match=r"MOETUNE_STORE .* or PGPASSWORD") as caught:
        override_job(job, {"cluster.store": store}, "job.yaml")
    assert "topmost" not in str(caught.value)
    assert "cluster.store" in str(caught.value)


@pytest.mark.parametrize("given", [SECRET, f"{BARE}?password=topmost"])
def test_the_environment_has_the_password(
    given: str, job: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOETUNE_STORE", given)
    named = override_job(job, {"cluster.store": BARE}, "test")
    for one in (job, named, portable(job), portable(named)):
        assert one.store_url() == given
        assert one.cluster.shown_store() == BARE
        assert "topmost" not in dump_job(one)
    assert portable(job).cluster.store == BARE
    other = override_job(job, {"cluster.store": "postgresql://me@other/db"}, "test")
    assert other.store_url() == "postgresql://me@other/db"


def test_a_gateways_specification_shows_no_password() -> None:
    spec = EndpointSpec(
        serve=ServeSpec(), model=ModelSpec(path="x"), store_url=SECRET, storage="runs"
    )
    assert "topmost" not in f"{spec!r} {spec}"


def test_paths_in_a_job_begin_at_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "jobs"
    (folder / "base").mkdir(parents=True)
    (folder / "space.yaml").write_text("optimizer.lr: {log: [1.0e-4, 1.0e-3]}")
    values = {
        "name": "near",
        "train": {
            "model": {"path": "base"},
            "data": {"train": "rows/*.jsonl", "validation": "s3://bucket/rows.jsonl"},
        },
        "search": {"space": "space.yaml"},
        "cluster": {"storage": "../runs", "store": "sqlite+pysqlite:///my%20db?timeout=3"},
        "serve": {"tls": {"cert": "/etc/cert.pem", "key": "key.pem"}},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    job = load_job("jobs/job.yaml", ["data.train=own.jsonl"])
    assert job.train.model.path == "jobs/base"
    assert job.train.data.train == "own.jsonl", "--set is of the shell's folder"
    assert load_job("jobs/job.yaml").train.data.train == "jobs/rows/*.jsonl"
    assert job.train.data.validation == "s3://bucket/rows.jsonl"
    assert job.search_space().varied() == ["optimizer.lr"]
    assert portable(job).cluster.storage == f"{tmp_path}/runs"
    whole = f"sqlite+pysqlite:///{folder}/my%20db?timeout=3"
    assert job.store_url() == portable(job).cluster.store == whole
    own = load_job("jobs/job.yaml", ["cluster.store=sqlite:///own.db"])
    assert own.store_url() == f"sqlite:///{tmp_path}/own.db", "--set is of the shell's folder"
    assert (job.serve.tls.cert, job.serve.tls.key) == ("/etc/cert.pem", "jobs/key.pem")
    values["train"]["model"] = {"path": "org/model"}
    values["cluster"]["store"] = "postgresql://me@host/db"
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    assert load_job("jobs/job.yaml").train.model.path == "org/model", "a name, of no file there"
    assert load_job("jobs/job.yaml").store_url() == "postgresql://me@host/db"
    assert load_job("smoke").train.data.train == "smoke/train.jsonl", (
        "what comes along is of no folder"
    )


def test_each_of_several_sources_begins_at_the_jobs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    sources = ["a.jsonl", {"source": "b/*.jsonl", "weight": 2}, {"source": "hub:c"}, "s3://d/e"]
    values = {
        "name": "near",
        "train": {"model": {"path": "base"}, "data": {"train": sources, "validation": "v.jsonl"}},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    job = load_job("jobs/job.yaml")
    names = [one.source for one in job.train.data.sources]
    assert names == ["jobs/a.jsonl", "jobs/b/*.jsonl", "hub:c", "s3://d/e"]
    moved = portable(job)
    assert [(one.source, one.weight) for one in moved.train.data.sources] == [
        (f"{folder}/a.jsonl", 1),
        (f"{folder}/b/*.jsonl", 2),
        ("hub:c", 1),
        ("s3://d/e", 1),
    ]
    assert portable(moved) == moved
    own = load_job("jobs/job.yaml", ["data.train=[own.jsonl, {source: b.jsonl, weight: 0.5}]"])
    assert [(one.source, one.weight) for one in own.train.data.sources] == [
        ("own.jsonl", 1),
        ("b.jsonl", 0.5),
    ]


def test_sources_in_a_space_begin_at_the_jobs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    many = ["a.jsonl", {"source": "b.jsonl", "weight": 2}, "hub:c"]
    values = {
        "name": "near",
        "train": {"model": {"path": "base"}, "data": {"train": "a", "validation": "v.jsonl"}},
        "search": {"space": {"data.train": {"choice": ["a.jsonl", many]}, "seed": 3}},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)

    def chosen(job: JobSpec) -> object:
        return dict(job.search_space().definition)["data.train"]["choice"]

    def placed(at: str) -> object:
        listed = [f"{at}/a.jsonl", {"source": f"{at}/b.jsonl", "weight": 2}, "hub:c"]
        return [f"{at}/a.jsonl", listed]

    job = load_job("jobs/job.yaml")
    assert chosen(job) == placed("jobs")
    assert chosen(portable(job)) == placed(str(folder))
    assert portable(portable(job)) == portable(job)
    values["search"] = {"space": {"data.train": "a.jsonl", "seed": {"int": [1, 2]}}}
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    fixed = portable(load_job("jobs/job.yaml")).search_space().definition
    assert fixed == {"data.train": f"{folder}/a.jsonl", "seed": {"int": [1, 2]}}


def test_sources_in_a_spaces_own_file_begin_at_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jobs", "spaces"):
        (tmp_path / name).mkdir()
    many = ["~/a.jsonl", {"source": "b.jsonl", "weight": 2}, "hub:c", "s3://d/e"]
    space = {"data.train": {"choice": ["a.jsonl", many]}, "seed": 3}
    (tmp_path / "spaces" / "space.yaml").write_text(yaml.safe_dump(space))
    data = {"train": "a", "validation": "v.jsonl"}
    values = {
        "name": "near",
        "train": {"model": {"path": "base"}, "data": data},
        "search": {"space": "../spaces/space.yaml"},
    }
    (tmp_path / "jobs" / "job.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    of_options = ["search.space=spaces/space.yaml"]
    for job in (load_job("jobs/job.yaml"), load_job("jobs/job.yaml", of_options)):
        first, listed = dict(portable(job).search_space().definition)["data.train"]["choice"]
        assert first == f"{tmp_path}/spaces/a.jsonl"
        assert listed == [
            "/home/me/a.jsonl",
            {"source": f"{tmp_path}/spaces/b.jsonl", "weight": 2},
            "hub:c",
            "s3://d/e",
        ]


@pytest.mark.parametrize(
    "data",
    [
        {"train": ""},
        {"train": " "},
        {"train": [""]},
        {"train": [{"source": ""}]},
        {"validation": ""},
    ],
    ids=["one", "blank", "listed", "with a weight", "validation"],
)
def test_an_empty_source_is_said(tmp_path: Path, data: dict[str, object]) -> None:
    """It would be the job's folder."""
    values = {
        "name": "near",
        "train": {"model": {"path": "base"}, "data": {"train": "t", "validation": "v", **data}},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="must name a source; it is empty") as caught:
        load_job(tmp_path / "job.yaml")
    assert f"data.{next(iter(data))}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_may_begin_at_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    data = {"train": ["~/x.jsonl", "~nosuchuser/y"], "validation": "~/v.jsonl"}
    values = {"name": "near", "train": {"model": {"path": "~/base"}, "data": data}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    job = load_job(tmp_path / "job.yaml")
    names = [f"{tmp_path}/x.jsonl", f"{tmp_path}/~nosuchuser/y"]
    assert [one.source for one in job.train.data.sources] == names
    assert job.train.data.validation == f"{tmp_path}/v.jsonl"
    assert job.train.model.path == f"{tmp_path}/base"
    own = load_job(tmp_path / "job.yaml", ["data.train=~/own.jsonl"])
    assert portable(own).train.data.train == f"{tmp_path}/own.jsonl"


def test_a_share_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "name": "near",
        "train": {
            "model": {"path": "base"},
            "data": {"train": "a.jsonl", "validation": {"share": 0.1}},
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    job = load_job("job.yaml", ["data.validation.share=0.2"])
    assert job.train.data.held_out == 0.2
    assert portable(job).train.data.held_out == 0.2
    assert portable(portable(job)) == portable(job)


def test_paths_in_a_policy_begin_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").touch()
    rule = {"data": "right.jsonl", "limit": 0.8}
    values = {"job": "job.yaml", "data": "new/*.jsonl", "when": {"quality": rule}}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(values))
    policy = load_policy(tmp_path / "policy.yaml")
    assert (policy.job, policy.data) == (f"{tmp_path}/job.yaml", f"{tmp_path}/new/*.jsonl")
    assert policy.when.quality is not None
    assert policy.when.quality.data == f"{tmp_path}/right.jsonl"


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    options = ["data.prompt_columns=question", "serve.allowed_hosts=chat.example"]
    job = load_job("smoke", options)
    assert job.train.data.prompt_columns == ("question",)
    assert job.serve.allowed_hosts == ("chat.example",)
