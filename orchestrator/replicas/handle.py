"""The gateway's way to the engine's replicas."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.replicas.endpoint import Base
from orchestrator.replicas.golden import Golden
from orchestrator.replicas.readiness import Acknowledged, NotNow, OtherBase
from workers.config.base import InputError
from workers.engine.request import AdapterRef, Chunk, RequestError, TextRequest

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)
READY_SECONDS = 5
LOAD_SECONDS = 120
RESUMES = 3
"""Times that an answer is taken up again on another replica after one has died."""
OTHERS, OTHERS_SECONDS = 25, 5
"""Times that replicas with another base are met, and for how long, until that is said."""


class Replicas:
    """All replicas with one base behind a handle: the gateway's backend."""

    def __init__(self, handle: "DeploymentHandle", base: Base) -> None:
        self._handle, self._base = handle, base

    async def encode(self, requests: Sequence[TextRequest]) -> tuple[tuple[int, ...], ...]:
        """See `orchestrator.gateway.completions.Backend`: what one of the replicas says."""
        tries = _Tries()
        while True:
            try:
                ids: Any = await self._handle.encode.remote(self._base, requests)
            except Exception as error:
                await tries.after(_original(error))
            else:
                return tuple(ids)

    async def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """The answer; when the replica dies halfway, another one goes on from where it was. One
        that makes way for ours is asked again: another may be chosen then."""
        tokens, tries = request.generated, _Tries()
        while True:
            try:
                stream = self._stream(replace(request, generated=tokens))
                async with aclosing(stream):
                    async for chunk in stream:
                        tokens += chunk.tokens
                        yield chunk
                return
            except Exception as error:
                await tries.after(error)

    async def load(self, adapter: AdapterRef) -> None:
        """Hold an adapter ready on every replica that lives; later ones read the registry."""
        await self._broadcast("load", adapter)

    async def unload(self, slot: str) -> None:
        """Drop a slot on every replica, once the requests in it have ended."""
        await self._broadcast("unload", slot)

    async def keep(self, slots: Collection[str]) -> None:
        """Say on every replica which slots no others may drive out."""
        await self._broadcast("keep", slots)

    async def check(self, adapter: AdapterRef, golden: Golden) -> list[Acknowledged]:
        """What every replica says of a version that it has loaded."""
        return await self._broadcast("check", adapter, golden)

    async def ready(self) -> bool:
        """Whether some replica answers."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                return bool(await self._handle.ready.remote(self._base))
        except Exception:
            return False

    async def _broadcast(self, method: str, *args: object) -> list[Any]:
        """What every replica returns, or the first error. One that dies meanwhile, or makes way for
        ours, is not asked: its successor reads the registry."""
        from ray.exceptions import RayActorError

        response = self._handle.broadcast(method, self._base, *args)
        results = await response.results_async(timeout_s=LOAD_SECONDS, return_exceptions=True)
        results = [_original(one) if isinstance(one, BaseException) else one for one in results]
        living = [one for one in results if not isinstance(one, (RayActorError, OtherBase))]
        if not living:
            raise NotNow("no replica is there")
        for result in living:
            if isinstance(result, BaseException):
                raise result
        return living

    async def _stream(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        response: Any = self._handle.options(stream=True).generate.remote(self._base, request)
        finished = False
        try:
            async for chunk in response:
                yield chunk
            finished = True
        except Exception as error:
            finished = True
            raise _original(error) from None
        finally:
            if not finished:
                response.cancel()


class _Tries:
    """How often replicas have died under a request, or had another base."""

    def __init__(self) -> None:
        self._deaths = self._others = 0

    async def after(self, error: BaseException) -> None:
        """Returns when it is to be tried again; else raises what the client is to be told."""
        from ray.exceptions import RayActorError

        if isinstance(error, RayActorError):
            self._deaths += 1
            log.warning("a replica died under a request, resume %d: %s", self._deaths, error)
            if self._deaths > RESUMES:
                raise _unavailable("the replicas keep dying; see their logs")
        elif isinstance(error, OtherBase):
            self._others += 1
            if self._others > OTHERS:
                raise _unavailable("no replica is there")
            await asyncio.sleep(OTHERS_SECONDS / OTHERS)
        else:
            raise error


def _unavailable(why: str) -> RequestError:
    return RequestError(why, None, 503, "unavailable")


def _original(error: BaseException) -> BaseException:
    """The replica's own error out of Ray's wrapping, where it is one for the client."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, (InputError, OtherBase)) else error
