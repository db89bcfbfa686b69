"""The gateway's way to the engine's replicas."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.rollout.acknowledge import Acknowledged, NotNow
from orchestrator.rollout.golden import Golden
from workers.engine.request import Adapter, Chunk, RequestError, TextRequest
from workers.spec import InputError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)
READY_SECONDS = 5
LOAD_SECONDS = 120
RESUMES = 3
"""Times that an answer is taken up again on another replica after one has died."""


class Replicas:
    """All replicas behind one handle: the gateway's backend."""

    def __init__(self, handle: "DeploymentHandle") -> None:
        self._handle = handle

    async def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """The answer; when the replica dies halfway, another one goes on from where it was."""
        from ray.exceptions import RayActorError

        tokens = request.generated
        for resumes in range(RESUMES + 1):
            try:
                stream = self._stream(replace(request, generated=tokens))
                async with aclosing(stream):
                    async for chunk in stream:
                        tokens += chunk.tokens
                        yield chunk
                return
            except RayActorError as error:
                log.warning("a replica died under a request, resume %d: %s", resumes + 1, error)
        raise RequestError("the replicas keep dying; see their logs", None, 503, "unavailable")

    async def load(self, adapter: Adapter) -> None:
        """Hold an adapter ready on every replica that lives; later ones read the registry."""
        await self._broadcast("load", adapter)

    async def unload(self, slot: str) -> None:
        """Drop a slot on every replica, once the requests in it have ended."""
        await self._broadcast("unload", slot)

    async def keep(self, slots: Collection[str]) -> None:
        """Say on every replica which slots no others may drive out."""
        await self._broadcast("keep", slots)

    async def check(self, adapter: Adapter, golden: Golden) -> list[Acknowledged]:
        """What every replica says of a version that it has loaded."""
        return await self._broadcast("check", adapter, golden)

    async def ready(self) -> bool:
        """Whether some replica answers."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                return bool(await self._handle.ready.remote())
        except Exception:
            return False

    async def _broadcast(self, method: str, *args: object) -> list[Any]:
        """What every replica returns, or the first error. One that dies meanwhile is not asked:
        its successor reads the registry."""
        from ray.exceptions import RayActorError

        response = self._handle.broadcast(method, *args)
        results = await response.results_async(timeout_s=LOAD_SECONDS, return_exceptions=True)
        living = [result for result in results if not isinstance(result, RayActorError)]
        if not living:
            raise NotNow("no replica is there")
        for result in living:
            if isinstance(result, BaseException):
                raise _original(result)
        return living

    async def _stream(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        response: Any = self._handle.options(stream=True).generate.remote(request)
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


def _original(error: BaseException) -> BaseException:
    """The replica's own error out of Ray's wrapping, where it is one for the client."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, InputError) else error
