"""A job: what to train, what to search, on which cluster, and how to serve the winner."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.config.audit import AuditSpec
from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.edge_limits import LimitsSpec
from orchestrator.config.health import HealthSpec
from orchestrator.config.relative_paths import JOB, JOB_NAMES, JOB_STORES, beside, elsewhere
from orchestrator.config.rollout import GuardSpec, RolloutSpec
from orchestrator.serve.tls import TlsSpec
from search_spaces.space import SearchSpace
from workers.config.train import (
    InputError,
    Listed,
    NonNegative,
    PositiveInt,
    Spec,
    TrainSpec,
    override,
    validated,
)
from workers.config.yaml_text import read_yaml

__all__ = [
    "ClusterSpec",
    "JobSpec",
    "SearchSpec",
    "ServeSpec",
    "assigned",
    "comes_along",
    "dump_job",
    "load_job",
    "override_job",
    "portable",
]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]
HostName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.:_-]*$")]
Port = Annotated[int, Field(ge=0, le=65535)]


class SearchSpec(Spec):
    """The study: what may vary, and how trials are compared."""

    space: str | dict[str, Any] = "moe_lora"
    """Name of a preset, path of a YAML file, or the space itself."""
    trials: PositiveInt = 8
    """Trials in all."""
    metric: str = "validation/loss"
    """Metric that trials are compared on, as trials report it."""
    mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger metric is better."""
    max_concurrent: PositiveInt = 1
    """Trials that run at the same time."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPU cores reserved for each worker of a trial."""
    gpus_per_worker: NonNegative = 0
    """GPUs reserved for each worker of a trial."""
    wait_seconds: NonNegative = 600
    """How long the study waits for room for a trial, which an autoscaler is asked for."""
    grace_evaluations: PositiveInt = 1
    """ASHA stops no trial before so many evaluations."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """ASHA keeps one trial of so many at each rung."""
    retries: Annotated[int, Field(ge=0)] = 1
    """A trial that fails is started again so many times, from its last checkpoint."""
    repeat: bool = False
    """Train a setting again where the search suggests it again, as it does in a small space. Else
    such a trial gets what the one before got."""
    startup_trials: PositiveInt = 4
    """Random trials before TPE begins to model."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the search."""


class ServeSpec(Spec):
    """The endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback a key is required."""
    port: Port = 8000
    """Port of the gateway; 0 takes a free one."""
    replicas: PositiveInt = 1
    """Engine replicas."""
    cpus_per_replica: NonNegative = 1
    """CPU cores reserved for each replica."""
    gpus_per_replica: NonNegative = 0
    """GPUs reserved for each replica."""
    wait_seconds: NonNegative = 600
    """How long the endpoint waits for room for its replicas, which an autoscaler is asked for."""
    max_batch_tokens: PositiveInt = 512
    """Tokens of one forward pass, over all requests."""
    cache_tokens: PositiveInt = 8192
    """Tokens that the key-value cache of a replica holds."""
    max_new_tokens: PositiveInt = 256
    """Longest answer; also the default of a request that names none."""
    max_queued_requests: PositiveInt = 64
    """Requests that may wait on a replica; beyond that 429 is the answer to the latest of the key
    that has the most there."""
    max_adapters: PositiveInt = 8
    """Adapter versions that a replica holds at once; the idle one used longest ago makes room, but
    none that a name leads to for a version that a request names exactly."""
    share_prefixes: bool = False
    """Whether what one key's prompt has computed serves another's: quicker where keys ask alike,
    and the time of an answer then tells whether somebody has asked the same."""
    rollout: RolloutSpec = RolloutSpec()
    """How a version comes to its traffic."""
    guard: GuardSpec = GuardSpec()
    """When a version is taken out of service by itself."""
    health: HealthSpec = HealthSpec()
    """Router health and drift."""
    audit: AuditSpec = AuditSpec()
    """The audit log."""
    limits: LimitsSpec = LimitsSpec()
    """Limits of requests, and of those who send them."""
    tls: TlsSpec = TlsSpec()
    """HTTPS instead of HTTP, where its files are named."""
    examples: Annotated[int, Field(ge=0, le=20)] = 0
    """So many questions of a version's validation rows (`evaluation.samples`) are offered on the
    page, to everybody who may ask there; 0 offers none."""
    cors_origins: Listed[Origin] = ()
    """Other sites whose pages may call the endpoint, as in https://app.example; none by default."""
    allowed_hosts: Listed[HostName] = ()
    """Names that requests may be sent to while no key is set, besides this machine's own
    (localhost, 127.0.0.1, [::1]), as in chat.example behind a proxy; in small letters, without a
    port. With a key any name will do."""


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
        values = beside(Path(path).parent, values, JOB, JOB_NAMES, JOB_STORES)
    job = override_job(validated(JobSpec, values, str(path)), changes, "options")
    job = override_job(job, assigned(assignments), "--set")
    job.search_space()
    return job


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
        "data.train": _absolute(train.data.train),
        "data.validation": _absolute(train.data.validation),
        "cluster.storage": _absolute(cluster.storage),
        "cluster.store": cluster.shown_store() if cluster.named_store else None,
    }
    if Path(train.model.path).is_dir():
        changes["model.path"] = _absolute(train.model.path)
    if isinstance(job.search.space, str):
        changes["search.space"] = dict(job.search_space().definition)
    return override_job(job, changes, f"job {job.name}")


def _absolute(path: str) -> str:
    return path if elsewhere(path) else str(Path(path).resolve())


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
