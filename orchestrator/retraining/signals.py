"""What a name's watch looks at: the endpoint's word on drift, and answers to labelled rows."""

from collections.abc import Callable
from dataclasses import dataclass

from cluster.session import session
from orchestrator.client import Client
from orchestrator.config.job import load_job, override_job
from orchestrator.evaluation.compare import Measurement, compare_version
from orchestrator.registry.registry import Registry
from orchestrator.retraining.policy import Policy, QualityRule
from orchestrator.router_health.monitor import QUIET
from orchestrator.router_health.report import Health, HealthVerdict
from workers.config.base import InputError, validated
from workers.config.metrics import LOSS, SCORE, of_validation, value_at
from workers.engine.request import RequestError


@dataclass(frozen=True)
class Signals:
    """Both are of the name's present champion."""

    drift: Callable[[str], HealthVerdict | None]
    """Of a version; None where nothing is known of it."""
    quality: Callable[[QualityRule], float]
    """The rule's metric on its rows."""


def endpoint_drift(client: Client, name: str) -> Callable[[str], HealthVerdict | None]:
    """The word of an endpoint. Raises InputError where it does not answer; an endpoint that nobody
    has asked for anything yet does."""

    def drift(version: str) -> HealthVerdict | None:
        try:
            body = client.get(f"/moetune/v1/health/{name}")
        except RequestError as error:
            if error.code == QUIET:
                return None
            raise
        told = validated(Health, body, f"the health of {name}")
        return next((one.drift for one in told.versions if one.version == version), None)

    return drift


def check_policy(policy: Policy, registry: Registry, name: str, base: str | None = None) -> None:
    """InputError for a job or labelled rows that cannot be used: it may be days until they are.
    `base`: see `Measurement.of`."""
    override_job(load_job(policy.job), policy.set, "set")
    rule = policy.when.quality
    if rule and registry.champion(name):
        Measurement.of(registry, name, rule.data, rule.rows, base=base)


def measured_quality(
    registry: Registry, name: str, address: str | None = None, base: str | None = None
) -> Callable[[QualityRule], float]:
    """Labelled rows answered by the champion, on the cluster at `address`; None is the connected
    one, or else a local one. `base`: see `Measurement.of`."""

    def quality(rule: QualityRule) -> float:
        measurement = Measurement.of(registry, name, rule.data, rule.rows, base=base)
        with session(address):
            metrics = compare_version(measurement).results[name]
        value = value_at({"validation": metrics}, of_validation(rule.metric))
        if value is None:
            known = ", ".join((SCORE, LOSS, *metrics["tasks"]))
            raise InputError(f"when.quality.metric: no {rule.metric} in {rule.data}; has {known}")
        return value

    return quality
