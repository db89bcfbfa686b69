"""What runs inside Ray Serve: the gateway's deployment, the engine's, and the way between them."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from orchestrator.api import create_app
from orchestrator.catalogue import Catalogue
from orchestrator.edge.keeper import Keeper
from orchestrator.edge.keys import KeyRing
from orchestrator.edge.meter import Meter
from orchestrator.edge.parts import Edge
from orchestrator.registry import Registry
from orchestrator.spec import ServeSpec
from workers.engine.request import Adapter, Chunk, Limits, RequestError, TextRequest
from workers.spec import InputError, ModelSpec, Spec

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)
READY_SECONDS = 5
LOAD_SECONDS = 120
RESUMES = 3
"""Times that an answer is taken up again on another replica after one has died."""


class EndpointSpec(Spec):
    """Everything that the endpoint's processes need to know. No secret is in it."""

    serve: ServeSpec
    model: ModelSpec
    store_url: str
    """Database of the registry."""
    storage: str
    """Folder of the registry's versions."""
    accepted_key: str | None = None
    """`orchestrator.edge.keys.key_hash` of the key."""

    @property
    def base_id(self) -> str:
        """What requests call the bare base: the last part of its folder's or hub name."""
        return self.model.path.rstrip("/").rpartition("/")[2]

    def limits(self) -> Limits:
        """The engine's share of the serving specification."""
        return Limits(
            max_batch_tokens=self.serve.max_batch_tokens,
            cache_tokens=self.serve.cache_tokens,
            max_new_tokens=self.serve.max_new_tokens,
            max_queued=self.serve.max_queued_requests,
            max_adapters=self.serve.max_adapters,
        )


class Replica:
    """One engine with its own copy of the base model."""

    def __init__(self, spec: EndpointSpec) -> None:
        from workers.engine.engine import ContinuousEngine
        from workers.engine.text import TextEngine
        from workers.model import load_base

        base = load_base(spec.model)
        self._engine = ContinuousEngine(base, spec.limits())
        self._text = TextEngine(self._engine, base.tokenizer)

    async def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """See `orchestrator.api.Backend`."""
        async with aclosing(self._text.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def load(self, adapter: Adapter) -> None:
        """See `orchestrator.api.Backend`; for this replica."""
        await self._text.load(adapter)

    async def ready(self) -> bool:
        """Whether the engine generates."""
        return await self._text.ready()

    async def check_health(self) -> None:
        """Serve replaces a replica whose engine cannot go on."""
        if not self._engine.healthy:
            raise RuntimeError("the engine has stopped")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


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
        """Hold an adapter ready on every replica there is; later ones load what they are asked."""
        response = self._handle.broadcast("load", adapter)
        for result in await response.results_async(timeout_s=LOAD_SECONDS, return_exceptions=True):
            if isinstance(result, Exception):
                raise _original(result)

    async def ready(self) -> bool:
        """Whether some replica answers."""
        try:
            return bool(await asyncio.wait_for(self._handle.ready.remote(), READY_SECONDS))
        except Exception:
            return False

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


def _original(error: Exception) -> Exception:
    """The replica's own error out of Ray's wrapping, where it is one for the client."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, InputError) else error


class Ingress:
    """The gateway as a Serve deployment: makes its application when it starts."""

    def __init__(self, spec: EndpointSpec, replicas: "DeploymentHandle") -> None:
        self._spec, self._backend = spec, Replicas(replicas)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's hook for an application that is made on the replica."""
        registry = Registry(self._spec.store_url, self._spec.storage)
        catalogue = Catalogue(registry, self._spec.base_id, self._backend.load)
        return create_app(self._backend, catalogue, self._edge())

    def _edge(self) -> Edge:
        serve, keeper = self._spec.serve, Keeper(self._spec.store_url)
        keys = KeyRing(self._spec.accepted_key, keeper.read)
        meter = Meter(serve.limits)
        return Edge(
            keys=keys,
            meter=meter,
            limits=serve.limits,
            tasks=(partial(keeper.run, keys, meter),),
            cors_origins=serve.cors_origins,
        )
