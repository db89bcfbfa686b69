"""Immutable adapter versions, and the names that point at them through an append-only log.

A version is a folder named by the hash of its content, and a row. A name (`home`) has a log of
events, and `orchestrator.registry.state` says what they come to. Nothing is ever updated, and
deleted only as a whole (`orchestrator.disk.deletion`), so any number of threads, processes and
machines may work on one registry.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.registry.artifacts import VersionFiles
from orchestrator.registry.logs import Logs, event_of
from orchestrator.registry.models import BASE, ENDS, Event, KeptEvaluation, Version
from orchestrator.registry.rules import ID_LENGTH, PREFIX, check_metrics, check_name
from orchestrator.registry.state import Rollout
from workers.adapter.manifest import Manifest
from workers.config.base import InputError

if TYPE_CHECKING:
    from orchestrator.registry.store import Store
    from orchestrator.store.database import DatabaseRow

Decide = Callable[[list[Event]], Iterable[Event]]
"""The events that a log gets, from those that it has."""


class Registry:
    """Versions and names in one database and one storage folder."""

    def __init__(self, store_url: str, storage_folder: str | Path, patience: float = 0.0) -> None:
        """`store_url`: any SQLAlchemy URL (`JobSpec.store_url`); opened on first use. A server that
        is away is waited for `patience` seconds."""
        self._url, self._patience = store_url, patience
        folder = Path(storage_folder).resolve()
        self._files = VersionFiles(folder / "versions", ours=folder / "studies")
        self._opening = threading.Lock()
        self._opened: Store | None = None
        self._logs = Logs(self._events)

    def register(
        self,
        study: str,
        trial: int | None,
        adapter_folder: str | Path,
        metrics: Mapping[str, Any],
        lineage: Mapping[str, Any] | None = None,
    ) -> Version:
        """Take an adapter into the registry; the same content again is the same version. A trial's
        weights are not copied: trial and version are two names of the same files.

        `metrics` (nested, as reported) and `lineage` (fields of `Manifest`, such as `data_digest`
        and `expert_load`) go into its own manifest, so they are part of what is hashed.
        """
        check_name(study, "study")
        check_metrics(metrics, f"study {study}, trial {trial}")
        facts = {"study": study, "trial": trial, "metrics": dict(metrics)}
        source, manifest = Path(adapter_folder), {**(lineage or {}), **facts}
        digest = self._files.add(source, manifest)
        created = datetime.now(UTC).isoformat()
        self._store.add_version({"digest": digest, **facts, "created": created})
        if not self._files.path(digest).is_dir():  # a deletion was under way until then
            self._files.add(source, manifest)
        return self.version(digest)

    def staging(self) -> AbstractContextManager[Path]:
        """A folder in the storage for an adapter that is not yet a version; gone at the end."""
        return self._files.staging()

    def versions(self, study: str | None = None) -> list[Version]:
        """All versions, or a study's, oldest first."""
        return [self._version(row) for row in self._store.versions(study=study)]

    def version(self, id: str) -> Version:
        """The version of an id, a full digest, or a prefix of at least 4 hex digits."""
        if not PREFIX.fullmatch(id):
            raise InputError(f"version {id!r}: an id is 4 to 64 hex digits")
        rows = self._store.versions(prefix=id)
        if not rows:
            raise InputError(f"version {id}: there is none in the registry")
        if len(rows) > 1:
            found = ", ".join(row["digest"][:ID_LENGTH] for row in rows[:5])
            raise InputError(f"version {id}: several begin so: {found}")
        return self._version(rows[0])

    def names(self) -> list[str]:
        """All names that something was promoted to."""
        return self._store.names()

    def deleted_names(self) -> list[str]:
        """Names that were deleted, and nothing was promoted to since."""
        return self._store.names(deleted=True)

    def revision(self) -> int:
        """Grows with every event of any name: one cheap question, asked often."""
        return self._store.revision()

    def rollouts(self) -> dict[str, Rollout]:
        """Every name's state: what a server that watches the registry asks for. A name whose log
        goes on with what cannot be read here stays as it was, and the others go on."""
        states = (self._logs.state(name) for name in self.names())
        return {state.name: state for state in states if state}

    def rollout(self, name: str) -> Rollout | None:
        """A name's state, as far as its log can be read; None where nothing was promoted to it.
        Reads what is new since the last time."""
        check_name(name, "name")
        return self._logs.state(name)

    def champions(self) -> dict[str, Version]:
        """Every name's champion, but for names that have fallen back to the bare base."""
        states = self.rollouts().items()
        return {name: self.version(s.champion) for name, s in states if s.champion != BASE}

    def champion(self, name: str) -> Version | None:
        """The version that a name points at; None where nothing was promoted to it, or it has
        fallen back to the bare base."""
        state = self.rollout(name)
        return self.version(state.champion) if state and state.champion != BASE else None

    def history(self, name: str, since: int = 0) -> list[Event]:
        """The log of a name from a revision on, oldest first; empty for a name that nobody has
        used. StorageError where an event cannot be read: what is decided rests on all of them."""
        check_name(name, "name")
        return [event_of(row) for row in self._store.events(name, since)]

    def resolve(self, reference: str) -> Version:
        """The version of `NAME` or `NAME@VERSION`, its files verified.

        A version answers to a name only if it was once its champion or canary: what a gate has
        refused, or let pass as a shadow only, cannot be had under the name.
        """
        name, at, id = reference.partition("@")
        state = self.rollout(name)
        if state is None:
            known = ", ".join(self.names()) or "none yet"
            raise InputError(f"{name}: nothing was promoted to this name; names are: {known}")
        if not at and state.champion == BASE:
            why = self.history(name, state.revision)[-1].reason
            raise InputError(f"{name}: has fallen back to the bare base: {why}")
        version = self.version(id if at else state.champion)
        if not self._store.was_given(name, version.id):
            raise InputError(f"{reference}: this version was never promoted to {name}")
        self.verify(version)
        return version

    def verify(self, version: Version) -> None:
        """Refuse a version whose folder was lost or altered."""
        self._files.verify(version.digest)

    def manifest(self, version: Version) -> Manifest:
        """The lineage of a version, from its verified folder."""
        return self._files.manifest(version.digest)

    def first_answer(self, digest: str, setting: str) -> Any:
        """What a version's replicas answered to a golden prompt when they first acknowledged it in
        a setting, as plain values; None where they have not yet."""
        return next((row["answer"] for row in self._store.answers(digest, setting)), None)

    def keep_answer(self, digest: str, setting: str, answer: Any) -> None:
        """Keep a first answer; where there is one already, that one stays."""
        at = datetime.now(UTC).isoformat()
        row = {"digest": digest, "setting": setting, "answer": answer, "at": at}
        self._store.add_answer(row)

    def keep_evaluation(
        self, version: Version, asked: Mapping[str, Any], figures: Mapping[str, Any]
    ) -> None:
        """Keep what a version was measured on, and what that gave; it goes with the version.
        A number that is not finite becomes None: PostgreSQL takes none in JSON."""
        at = datetime.now(UTC).isoformat()
        plain = json.loads(json.dumps(figures), parse_constant=lambda _: None)
        row = {"digest": version.digest, "asked": dict(asked), "figures": plain, "at": at}
        self._store.add_evaluation(row)

    def evaluations(self, version: Version) -> list[KeptEvaluation]:
        """Those of a version, oldest first."""
        rows = self._store.evaluations(version.digest)
        fields = KeptEvaluation.model_fields
        return [KeptEvaluation.model_validate({k: row[k] for k in fields}) for row in rows]

    def append(self, event: Event) -> bool:
        """Append to a name's log; False where `event.revision` is taken: somebody else was first.

        The bare compare-and-set under `promotion` and the guard, which are what to call.
        """
        check_name(event.name, "name")
        row = event.model_dump(mode="json")
        if event.action == "delete":
            return self._store.end_log(row)
        needed = event.version != BASE and event.action not in ENDS
        if needed:
            self.verify(self.version(event.version))
        try:
            return self._store.add_event(row, version_there=needed)
        except LookupError:
            raise InputError(f"version {event.version}: has just been deleted") from None

    def remove(self, version: Version, decide: Decide) -> list[Event]:
        """Delete a version: its row and what was kept of its answers, then its files. `decide` says
        what the log of each name that has had it gets, which is returned; where it raises, all
        stays.

        The bare deletion under `orchestrator.disk.deletion`, which is what to call.
        """

        def rows(log: "Sequence[DatabaseRow]") -> "list[dict[str, Any]]":
            return [event.model_dump(mode="json") for event in decide([*map(event_of, log)])]

        written = self._store.remove_version(version.digest, version.id, rows)
        self._remove_files(version.digest)
        return [*map(event_of, written)]

    def finish_removal(self, id: str) -> bool:
        """Delete the files of the one version that begins so and whose deletion was cut off;
        whether there was one. What has no row may be another store's, or on its way in."""
        if not PREFIX.fullmatch(id) or self._store.versions(prefix=id):
            return False
        found = self._store.removed(id)
        if len(found) == 1:
            self._remove_files(found[0])
        return len(found) == 1

    def has_strange_files(self, id: str) -> bool:
        """Whether there are files of a version of which this store knows nothing."""
        known = PREFIX.fullmatch(id) is None or self._store.versions(prefix=id)
        return not known and self._files.there(id)

    def close(self) -> None:
        """Close the database connections."""
        if self._opened is not None:
            self._opened.close()

    def _remove_files(self, digest: str) -> None:
        self._store.remove_files(digest, partial(self._files.remove, digest))

    def _events(self, name: str, since: int) -> "Sequence[DatabaseRow]":
        return self._store.events(name, since)

    @property
    def _store(self) -> "Store":
        with self._opening:
            if self._opened is None:
                from orchestrator.registry.store import Store

                self._opened = Store(self._url, self._patience)
            return self._opened

    def _version(self, row: "DatabaseRow") -> Version:
        digest = row["digest"]
        place = {"id": digest[:ID_LENGTH], "folder": self._files.path(digest)}
        return Version.model_validate({**row, **place})
