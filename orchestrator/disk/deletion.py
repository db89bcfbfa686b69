"""Deletion: of a version, or of a name with its history. Nothing that answers requests goes."""

from contextlib import closing

from orchestrator.config.cluster import ClusterSpec
from orchestrator.registry.log import Decision, appended, next_event
from orchestrator.registry.models import Event, Version
from orchestrator.registry.presence import is_served
from orchestrator.registry.registry import Registry
from orchestrator.registry.rules import PREFIX
from orchestrator.registry.state import Rollout, state_of
from orchestrator.tuning.lifecycle import has_driver
from workers.config.base import InputError


def delete(
    place: ClusterSpec, what: str, *, actor: str, reason: str = "", force: bool = False
) -> list[Event]:
    """Delete a name with its history, or the version of an id; returns what went into logs.

    InputError for what `delete_name` and `delete_version` refuse, for a version whose study is
    running, since further trials may get it, and without `force` for a name that is served.
    """
    with closing(Registry(place.store_url(), place.storage)) as registry:
        if what in registry.names():
            if not force and is_served(place.store_url(), what):
                raise InputError(
                    f"{what}: an endpoint serves it, and its requests would fail; stop that first, "
                    "or delete it with --force"
                )
            return [delete_name(registry, what, actor=actor, reason=reason)]
        if not PREFIX.fullmatch(what):
            known = ", ".join(registry.names()) or "none yet"
            raise InputError(f"{what}: no name and no version; names are: {known}")
        _check_no_study(registry, place, what)
        return delete_version(registry, what, actor=actor, reason=reason)


def delete_name(registry: Registry, name: str, *, actor: str, reason: str = "") -> Event:
    """Delete a name with all that its log has: what is left is this event. The versions stay.

    InputError where the name has a canary or a shadow, and for one that nobody has used.
    """

    def decide(events: list[Event]) -> Decision:
        state = state_of(events)
        if state is None:
            known = ", ".join(registry.names()) or "none yet"
            raise InputError(f"{name}: nothing was promoted to this name; names are: {known}")
        if beside := _beside(state):
            raise InputError(f"{name}: {beside}; end that first: moetune abort {name}")
        since = next((e.at for e in events if e.action != "delete"), events[0].at)
        evidence = {"events": len(events), "since": since.isoformat()}
        why = reason.strip() or "deleted"
        return Decision(action="delete", version=state.champion, reason=why, evidence=evidence)

    return appended(registry, name, actor, decide)


def delete_version(registry: Registry, id: str, *, actor: str, reason: str = "") -> list[Event]:
    """Delete a version with its files; returns what went into the logs of names that have had it.

    InputError where a name leads to it (champion, canary, shadow) or a rollback of one would. A
    deletion that was cut off is finished.
    """
    try:
        version = registry.version(id)
    except InputError:
        if registry.finish_removal(id):
            return []
        if registry.has_strange_files(id):
            raise InputError(
                f"version {id}: this store does not know it; its files stay, since another store "
                "may (--store, MOETUNE_STORE)"
            ) from None
        raise

    def decide(events: list[Event]) -> list[Event]:
        state = state_of(events)
        if state is None:  # the name was deleted
            return []
        _refuse(state, version)
        why = reason.strip() or "deleted"
        decision = Decision(action="drop", version=version.id, reason=why)
        return [next_event(state.name, actor, decision, events)]

    return registry.remove(version, decide)


def _check_no_study(registry: Registry, place: ClusterSpec, id: str) -> None:
    try:
        study = registry.version(id).study
    except InputError:  # what is wrong with it, the deletion says
        return
    if has_driver(place, study):
        raise InputError(f"version {id}: its study {study} is running, and may need it")


def _beside(state: Rollout) -> str:
    if state.canary:
        return f"version {state.canary.version} is its canary"
    return f"version {state.shadow} is its shadow" if state.shadow else ""


def _refuse(state: Rollout, version: Version) -> None:
    parts = {
        "the champion of": state.champion,
        "the canary of": state.canary and state.canary.version,
        "the shadow of": state.shadow,
        "what a rollback leads back to for": state.previous,
    }
    part = next((part for part, id in parts.items() if id == version.id), None)
    if part:
        raise InputError(f"version {version.id}: is {part} {state.name}, and is not deleted")
