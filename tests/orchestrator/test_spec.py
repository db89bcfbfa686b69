"""Job specifications, away from where they were written."""

from pathlib import Path

import pytest

from orchestrator.spec import ClusterSpec, JobSpec, portable


@pytest.mark.parametrize(
    ("store", "url"),
    [
        (None, "sqlite:///{here}/runs/moetune.db"),
        ("sqlite:///my.db", "sqlite:///{here}/my.db"),
        ("sqlite+pysqlite:///a/my.db?timeout=3", "sqlite+pysqlite:///{here}/a/my.db?timeout=3"),
        ("sqlite:////srv/my.db", "sqlite:////srv/my.db"),
        ("sqlite://", "sqlite://"),
        ("postgresql://me:key@host/my.db", "postgresql://me:key@host/my.db"),
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
    moved = portable(job.model_copy(update={"cluster": cluster}))
    assert moved.train.model.path == f"{tmp_path}/base"
    assert moved.train.data.train == f"{tmp_path}/train.jsonl"
    assert moved.cluster.storage == f"{tmp_path}/runs"
    assert moved.cluster.store == f"sqlite:///{tmp_path}/my.db"
    assert moved.cluster.address == "head:6379"
    assert moved.search.space == job.search_space().definition
    assert portable(moved) == moved
