"""Which versions of a study were promoted: to what name, when, by whom, and what answers now."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from orchestrator.registry.models import BASE, Event, Version
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout
from workers.config.base import InputError, StorageError

LATEST = 20
_TOLD = ("promote", "canary", "shadow", "rollback", "fallback")


@dataclass(frozen=True)
class Promoted:
    """A version of the study that came to stand behind a name."""

    name: str
    version: str
    trial: int | None
    action: str
    at: datetime
    actor: str
    reason: str
    now: str
    """What the name does today."""


@dataclass(frozen=True)
class Promotions:
    """The latest first, and names whose log cannot be read here, with the reason."""

    found: tuple[Promoted, ...]
    unread: tuple[str, ...]


def promotions(registry: Registry, study: str) -> Promotions:
    """All names' logs, as far as they tell of this study's versions."""
    versions = {version.id: version for version in registry.versions(study)}
    found: list[Promoted] = []
    unread = []
    for name in registry.names() if versions else ():
        try:
            found += _of_name(registry, name, versions)
        except StorageError as error:
            unread.append(str(error))
    found.sort(key=lambda one: one.at, reverse=True)
    return Promotions(tuple(found[:LATEST]), tuple(unread))


def _of_name(registry: Registry, name: str, versions: Mapping[str, Version]) -> Iterator[Promoted]:
    state = registry.rollout(name)
    for event in registry.history(name):
        if event.version in versions and event.action in _TOLD and state:
            yield _promoted(event, versions[event.version], _now(registry, state, event.version))


def _promoted(event: Event, version: Version, now: str) -> Promoted:
    return Promoted(
        name=event.name,
        version=version.id,
        trial=version.trial,
        action=event.action,
        at=event.at,
        actor=event.actor,
        reason=event.reason,
        now=now,
    )


def _now(registry: Registry, state: Rollout, version: str) -> str:
    if state.champion == version:
        return "champion"
    if state.canary and state.canary.version == version:
        return f"canary for {100 * state.canary.share:g} %"
    if state.shadow == version:
        return "shadow"
    if state.champion == BASE:
        return "the base answers"
    try:
        study = f" of study {registry.version(state.champion).study}"
    except InputError:  # taken out of the registry
        study = ""
    return f"{state.champion}{study} answers"
