"""Which adapter version a `model` of a request means, following the registry while it serves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from orchestrator.registry import Registry, Version
from orchestrator.rollout.route import Line, Route, Served
from workers.engine.request import Adapter, RequestError
from workers.spec import InputError

__all__ = ["Catalogue", "Route", "Served"]
log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
"""How often the registry is asked for champions: how soon a promotion is seen."""
RETRY_POLLS = 60
"""A version that was refused is tried again after so many polls."""


class Catalogue:
    """Resolves `NAME`, `NAME@VERSION` and the base's own id.

    A name changes to a new champion only after every replica holds it, so no request waits for a
    promotion or fails because of it; where the registry cannot be read, or the champion cannot be
    loaded, the last good one goes on.
    """

    def __init__(
        self, registry: Registry, base_id: str, load: Callable[[Adapter], Awaitable[None]]
    ) -> None:
        self._registry, self._load = registry, load
        self.base = Served(base_id, None)
        self._lines: dict[str, Line] = {}
        self._exact: dict[str, Served] = {}
        self._refused: dict[str, int] = {}
        self._polls = 0
        self.settled = False
        """Whether all that the registry named was served, or refused, once."""
        self.readable = True
        """Whether the registry answered last time."""

    @property
    def ids(self) -> list[str]:
        """Everything that `model` may be, except for older versions of a name."""
        return [self.base.id, *sorted(self._lines)]

    async def watch(self) -> None:
        """Follow the registry until cancelled."""
        while True:
            try:
                await self.refresh()
            except Exception:
                log.exception("the registry is not followed")
            await asyncio.sleep(POLL_SECONDS)

    async def refresh(self) -> None:
        """Read the registry once; load and switch to what was promoted since."""
        self._polls += 1
        try:
            champions = await asyncio.to_thread(self._registry.champions)
        except Exception as error:
            if self.readable:
                log.warning("the registry cannot be read, champions stay as they are: %s", error)
            self.readable = False
            self.settled = True
            return
        self.readable = True
        done = [await self._follow(name, version) for name, version in champions.items()]
        self.settled = self.settled or all(done)

    async def route(self, model: str, sticky: str) -> Route:
        """Where a request goes now; `sticky` names its user, who stays with one version.

        RequestError 404 where there is no such model.
        """
        line = self._lines.get(model)
        return line.route(sticky) if line else Route(await self.find(model))

    async def find(self, model: str) -> Served:
        """The exact model to use now; RequestError 404 where there is none of that name."""
        if model == self.base.id:
            return self.base
        line = self._lines.get(model)
        found = line.champion if line else self._exact.get(model)
        if found is None:
            found = await self._version(model)
            if "@" in model:  # what a bare name means may change
                self._exact[model] = found
        return found

    async def _follow(self, name: str, version: Version) -> bool:
        """Serve a champion; False where that is to be tried again soon."""
        current = self._lines.get(name)
        if current is not None and current.champion.fingerprint == version.id:
            return True
        if self._polls < self._refused.get(version.id, 0):
            return True
        try:
            await asyncio.to_thread(self._registry.verify, version)
            await self._load(_adapter(version))
        except InputError as error:
            self._refused[version.id] = self._polls + RETRY_POLLS
            log.warning("%s is not served: %s", _served(name, version).id, error)
            return True
        except Exception as error:  # no replica is there at the moment: soon again
            log.warning("%s is not served yet: %s", _served(name, version).id, error)
            return False
        self._lines[name] = Line(_served(name, version))
        log.info("%s is now %s", name, self._lines[name].champion.id)
        return True

    async def _version(self, model: str) -> Served:
        """`NAME@VERSION`, or a name that was promoted a moment ago."""
        name = model.partition("@")[0]
        try:
            version = await asyncio.to_thread(self._registry.resolve, model)
            await self._load(_adapter(version))
        except InputError as error:
            if not self.readable:
                raise RequestError("the registry cannot be read", "model", 503) from None
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"the model {model} is not served here: {error}", "model", 404, "model_not_found"
            ) from None
        return _served(name, version)


def _adapter(version: Version) -> Adapter:
    return Adapter(version.id, str(version.folder))


def _served(name: str, version: Version) -> Served:
    return Served(f"{name}@{version.id}", _adapter(version), name)
