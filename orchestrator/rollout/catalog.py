"""Which adapter version a `model` of a request means, following the registry while it serves."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress

from orchestrator.registry.models import BASE
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout
from orchestrator.rollout.loader import Load, Unload, VersionLoader, answering, wanted
from orchestrator.rollout.traffic import RequestRoute, Served, TrafficSplit
from workers.config.base import InputError, StorageError
from workers.engine.request import AdapterRef, RequestError

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
"""How often the registry is asked whether anything has happened: one count of rows."""
EXACT = 256
"""`NAME@VERSION` that are known without asking the registry, the latest found."""


class ModelCatalog:
    """Resolves `NAME`, `NAME@VERSION` and the base's own id.

    A name's traffic moves to a version only after every replica holds it, so no request waits for
    a promotion or fails because of it; where the registry cannot be read, or a version cannot be
    loaded, what was there goes on. Versions that nothing leads to any more are unloaded then.
    """

    def __init__(
        self,
        registry: Registry,
        base_id: str,
        load: Load,
        unload: Unload | None = None,
        room: int = 8,
    ) -> None:
        """`room`: adapters that a replica holds at once (`ServeSpec.max_adapters`)."""
        self._registry, self._room = registry, room
        self._loaded = VersionLoader(registry, load, unload)
        self.base = Served(base_id, None)
        self._splits: dict[str, TrafficSplit] = {}
        self._exact: dict[str, Served] = {}
        self._revision = -1
        self.states: Mapping[str, Rollout] = {}
        """What the registry said last, by name."""
        self.settled = False
        """Whether all that the registry named was served, or refused, once."""
        self.readable = True
        """Whether the registry answered last time."""

    @property
    def ids(self) -> list[str]:
        """Everything that `model` may be, except for older versions of a name."""
        return [self.base.id, *sorted(self._splits)]

    @property
    def names(self) -> list[str]:
        """The registry's names that are served, or are about to be: their champions are not
        refused here."""
        states, splits, refused = self.states, self._splits, self.refused
        return [name for name in states if name in splits or states[name].champion not in refused]

    @property
    def refused(self) -> Mapping[str, str]:
        """Versions that get no traffic although the registry wants it, and why."""
        return self._loaded.refused

    @property
    def led_to(self) -> frozenset[str]:
        """Versions that answer requests for a name, now or as soon as they are loaded."""
        going_on = (split.champion.fingerprint for split in self._splits.values())
        return frozenset(answering(self.states.values())).union(going_on)

    async def watch(self) -> None:
        """Follow the registry until cancelled."""
        try:
            while True:
                try:
                    await self.poll()
                except Exception:
                    log.exception("the registry is not followed")
                # Not wait_for: Python 3.11's forgets a cancellation that meets the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._loaded.moved.wait()
                self._loaded.moved.clear()
        finally:
            self._loaded.close()

    async def refresh(self) -> None:
        """Follow the registry once, all the way: what has to be loaded is waited for."""
        await self.poll()
        await self._loaded.settle()
        self._apply()

    async def poll(self) -> None:
        """Read the registry if anything has happened; move traffic to what is loaded, and begin to
        load the rest."""
        try:
            revision = await asyncio.to_thread(self._registry.revision)
            if revision != self._revision:
                self.states = await asyncio.to_thread(self._registry.rollouts)
                self._forget(set(await asyncio.to_thread(self._registry.deleted_names)))
                self._revision = revision
            self.readable = True
        except Exception as error:
            if self.readable:
                log.warning("the registry cannot be read, all stays as it is: %s", error)
            self.readable, self.settled = False, True
            return
        self._apply()

    async def route(self, model: str, sticky: str) -> RequestRoute:
        """Where a request goes now; `sticky` names its user, who stays with one version.

        RequestError 404 where there is no such model.
        """
        split = self._splits.get(model)
        if split:
            return split.route(sticky)
        pinned = "@" in model and model != self.base.id
        return RequestRoute(await self.find(model), "pinned" if pinned else "served")

    async def find(self, model: str) -> Served:
        """The exact model to use now; RequestError 404 where there is none of that name."""
        if model == self.base.id:
            return self.base
        split = self._splits.get(model)
        found = split.champion if split else self._exact.get(model)
        if found is None:
            found = await self._version(model)
            if "@" in model:  # what a bare name means may change
                self._note(model, found)
        return found

    def _note(self, model: str, found: Served) -> None:
        self._exact[model] = found
        if len(self._exact) > EXACT:  # a dictionary's first is its oldest
            del self._exact[next(iter(self._exact))]

    def _forget(self, deleted: Collection[str]) -> None:
        """Names and versions that somebody has deleted. A name that the registry has lost without
        such a word goes on."""
        gone = {f"{s.name}@{version}" for s in self.states.values() for version in s.gone}
        for model, served in list(self._exact.items()):
            if served.name in deleted or served.id in gone:
                del self._exact[model]
        for name in deleted:
            self._splits.pop(name, None)

    def _apply(self) -> None:
        states = list(self.states.values())
        needed = wanted(states, self._room)
        self._loaded.want(needed)
        for state in states:
            if state.name != self.base.id:  # that is the base, whatever is promoted to it meanwhile
                self._lead(state)
        going_on = {split.champion.fingerprint for split in self._splits.values()}
        self._loaded.keep_only(going_on.union(needed))
        self.settled = self.settled or not self._loaded.lacks(needed)

    def _lead(self, state: Rollout) -> None:
        """A name's requests to what the registry says, as far as that is loaded."""
        old, canary = self._splits.get(state.name), state.canary
        champion = self._served(state, state.champion) or (old.champion if old else None)
        if champion is None:
            return
        split = TrafficSplit(
            champion,
            self._served(state, canary.version) if canary else None,
            canary.share if canary else 0.0,
            self._served(state, state.shadow) if state.shadow else None,
        )
        if split != old:
            self._splits[state.name] = split
            log.info("%s: %s", state.name, split)

    def _served(self, state: Rollout, version: str) -> Served | None:
        if version == BASE:
            return Served(self.base.id, None, state.name)
        adapter = self._loaded.get(version)
        return _served(state.name, adapter) if adapter else None

    async def _version(self, model: str) -> Served:
        """`NAME@VERSION`, or a name that was promoted a moment ago. An InputError that is no
        RequestError is ours: a version that was promoted, and cannot be loaded."""
        name = model.partition("@")[0]
        try:
            version = await asyncio.to_thread(self._registry.resolve, model)
        except StorageError as error:
            if self.readable:
                raise
            log.warning("the registry cannot be read: %s", error)
            raise RequestError("the registry cannot be read", "model", 503) from None
        except InputError as error:
            raise RequestError(
                f"the model {model} is not served here: {error}", "model", 404, "model_not_found"
            ) from None
        return _served(name, await self._loaded.fetch(version))


def _served(name: str, adapter: AdapterRef) -> Served:
    return Served(f"{name}@{adapter.slot}", adapter, name)
