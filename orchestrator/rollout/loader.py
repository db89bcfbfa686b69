"""Which versions every replica holds, made so and kept so beside the serving."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any

from orchestrator.registry.models import BASE, Version
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout
from workers.config.base import InputError, StorageError
from workers.engine.request import AdapterRef, RequestError

log = logging.getLogger(__name__)
_PATH = re.compile(r"/[^\s:]*/[^\s:]*")
REFUSED_SECONDS = 30.0
"""A version that was refused is tried again after so long …"""
FAILED_SECONDS = 0.5
"""… and one that could not be judged, since no replica was there, after so long."""

Load = Callable[[AdapterRef], Awaitable[None]]
"""Makes a version ready on every replica; InputError says what is wrong with it."""
Unload = Callable[[str], Awaitable[None]]
"""Drops a slot on every replica, once the requests in it have ended."""


def answering(states: Iterable[Rollout]) -> list[str]:
    """Versions that requests go to."""
    return list(dict.fromkeys(version for state in states for version in state.answering))


def wanted(states: Collection[Rollout], room: int) -> list[str]:
    """Versions that every replica should hold, the most important first: all that answer requests,
    and as many previous champions as there is room for, so that rollbacks need not wait."""
    first = answering(states)
    previous = [state.previous for state in states if state.previous and state.previous != BASE]
    spare = [version for version in dict.fromkeys(previous) if version not in first]
    return [*first, *spare[: max(0, room - len(first))]]


class VersionLoader:
    """Loads and unloads in the background: what takes long here holds up no other name, and no
    rollback to what is there already."""

    def __init__(self, registry: Registry, load: Load, unload: Unload | None = None) -> None:
        self._registry, self._load, self._unload = registry, load, unload
        self._held: dict[str, AdapterRef] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._pause: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        """Versions that are not good for traffic, and why."""
        self.moved = asyncio.Event()
        """Set whenever a version has been loaded, or refused."""

    def get(self, version: str) -> AdapterRef | None:
        """The adapter, if every replica holds it."""
        return self._held.get(version)

    def lacks(self, versions: Iterable[str]) -> bool:
        """Whether some of these are neither held nor refused."""
        return any(v not in self._held and v not in self.refused for v in versions)

    def want(self, versions: Iterable[str]) -> None:
        """Begin to load what is missing of these, in their order."""
        now = time.monotonic()
        for version in versions:
            if version not in self._held and self._pause.get(version, 0) <= now:
                self._begin(version, self._bring)

    def keep_only(self, versions: Collection[str]) -> None:
        """Begin to unload all others. A slot that is wanted again waits for the end of that."""
        for version in [version for version in self._held if version not in versions]:
            del self._held[version]
            self._begin(version, self._drop)
        for noted in (self._pause, self.refused):
            for version in [version for version in noted if version not in versions]:
                del noted[version]

    async def settle(self) -> None:
        """Wait for all that has begun; what has failed may be tried again at once."""
        await asyncio.gather(*self._busy.values())
        self._pause.clear()

    def close(self) -> None:
        """Stop what has begun."""
        for task in self._busy.values():
            task.cancel()

    async def fetch(self, version: Version) -> AdapterRef:
        """Load a version now, and wait for it; InputError where it is refused."""
        await asyncio.to_thread(self._registry.verify, version)
        adapter = adapter_of(version)
        await self._load(adapter)
        return adapter

    def _begin(self, version: str, work: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        if version not in self._busy:
            self._busy[version] = asyncio.create_task(self._until_done(version, work))

    async def _until_done(
        self, version: str, work: Callable[[str], Coroutine[Any, Any, None]]
    ) -> None:
        try:
            await work(version)
        finally:
            del self._busy[version]
            self.moved.set()

    async def _bring(self, id: str) -> None:
        try:
            version = await asyncio.to_thread(self._registry.version, id)
            self._held[id] = await self.fetch(version)
            self.refused.pop(id, None)
        except Exception as error:
            if isinstance(error, InputError) and not _for_now(error):
                self.refused[id] = _shown(error)
                self._pause[id] = time.monotonic() + REFUSED_SECONDS
                log.warning("version %s gets no traffic: %s", id, error)
                return
            self._pause[id] = time.monotonic() + FAILED_SECONDS
            log.info("version %s gets no traffic yet: %s", id, error)

    async def _drop(self, version: str) -> None:
        try:
            if self._unload:
                await self._unload(version)
        except Exception as error:  # the engine makes room for itself when it has to
            log.warning("version %s is not unloaded: %s", version, error)


def adapter_of(version: Version) -> AdapterRef:
    """What an engine needs to know of a version."""
    return AdapterRef(version.id, str(version.folder), version.digest)


def _shown(error: InputError) -> str:
    """Why a version is refused, for those who may ask about it: no folder of ours is named."""
    if isinstance(error, StorageError):
        return "its files are lost, altered or cannot be read; the gateway's log has more"
    return _PATH.sub("…", str(error))


def _for_now(error: InputError) -> bool:
    """Whether it says nothing of the version: no slot is free at the moment, for instance."""
    return isinstance(error, RequestError) and error.status in (429, 503, 504)
