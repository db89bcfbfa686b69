"""A job: what to train, what to search, on which cluster, and how to serve the winner."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from os.path import expanduser
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.relative_paths import (
    JOB,
    JOB_NAMES,
    JOB_STORES,
    beside,
)
from orchestrator.config.serve import ServeSpec
from search_spaces.sources import with_sources
from search_spaces.space import SearchSpace
from search_spaces.spec import SearchSpec
from workers.config.base import InputError, Spec, override, validated
from workers.config.data import DataSpec
from workers.config.places import elsewhere, placed
from workers.config.train import TrainSpec
from workers.config.yaml_text import read_yaml


class JobSpec(Spec):
    """One tuning job, as a job file states it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    """Name of the study."""
    train: TrainSpec
    search: SearchSpec = SearchSpec()
    cluster: ClusterSpec = ClusterSpec()
    serve: ServeSpec = ServeSpec()

    def store_url(self) -> str:
        """URL of the database that holds Optuna's study and the registry."""
        return self.cluster.store_url()

    def study_folder(self) -> Path:
        """Folder with everything that this study writes."""
        return self.cluster.study_folder(self.name)

    def search_space(self) -> SearchSpace:
        """The resolved search space, checked against the training specification."""
        return SearchSpace.resolve(self.search.space, self.train)


def load_job(
    path: str | Path,
    assignments: Sequence[str] = (),
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> JobSpec:
    """Read a job file (YAML), apply other options' `changes`, and then `--set` assignments such as
    `adapter.rank=16`. Paths in the file are relative to its folder, those of options to ours.

    A bare name, such as `smoke`, is one of the job files that come with moetune.
    """
    ours = comes_along(path)
    try:
        values = read_yaml((ours or Path(path)).read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a job file is a mapping with `name` and `train`")
    if not ours:
        values = _beside(Path(path).parent, values)
    job = override_job(validated(JobSpec, values, str(path)), changes, "options")
    job = override_job(job, assigned(assignments), "--set")
    job.search_space()
    return job


def _beside(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """A job file's values with its paths as the process takes them, also those in its space."""
    told = beside(folder, values, JOB, JOB_NAMES, JOB_STORES)
    search = told.get("search")
    if isinstance(search, dict) and isinstance(space := search.get("space"), Mapping):
        search["space"] = with_sources(space, partial(placed, folder))
    return told


def override_job(job: JobSpec, changes: Mapping[str, Any], where: str) -> JobSpec:
    """`override` on a job, where `adapter.rank` is short for `train.adapter.rank`."""
    known = {
        f"train.{path}" if path.split(".")[0] in TrainSpec.model_fields else path: value
        for path, value in changes.items()
    }
    return override(job, known, where)


def portable(job: JobSpec) -> JobSpec:
    """The job as a process in another folder needs it: absolute paths, the space written out."""
    train, cluster = job.train, job.cluster
    changes: dict[str, Any] = {
        "data.train": _absolute_sources(train.data),
        **_absolute_validation(train.data),
        "cluster.storage": _absolute(cluster.storage),
        "cluster.store": cluster.shown_store() if cluster.named_store else None,
    }
    if Path(train.model.path).is_dir():
        changes["model.path"] = _absolute(train.model.path)
    if job.search.space is not None:
        changes["search.space"] = with_sources(job.search_space().definition, _absolute)
    if train.start_from:
        changes["start_from"] = _absolute(train.start_from)
    return override_job(job, changes, f"job {job.name}")


def _absolute_sources(data: DataSpec) -> Any:
    if isinstance(data.train, str):
        return _absolute(data.train)
    return [one.model_dump() | {"source": _absolute(one.source)} for one in data.train]


def _absolute_validation(data: DataSpec) -> dict[str, str]:
    """Nothing where it is held out of the sources to learn from."""
    there = data.validation
    return {"data.validation": _absolute(there)} if isinstance(there, str) else {}


def _absolute(path: str) -> str:
    return path if elsewhere(path) else str(Path(expanduser(path)).resolve())


def dump_job(job: JobSpec) -> str:
    """The resolved job as JSON, every default written out."""
    return json.dumps(job.model_dump(mode="json"), indent=2) + "\n"


def comes_along(job: str | Path) -> Path | None:
    """The job file of this name that comes with moetune, if that is meant."""
    path = Path(job)
    ours = Path(__file__).parents[1] / "jobs" / f"{path.name}.yaml"
    return ours if path.name == str(path) and ours.exists() and not path.is_file() else None


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """The changes that `--set FIELD=VALUE` options ask for; values are YAML."""
    return dict(map(_assignment, assignments))


def _assignment(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise InputError(f"--set {text}: write FIELD=VALUE, as in adapter.rank=16")
    return path.strip(), read_yaml(value, f"--set {path.strip()}")
