"""The gateway's routes: models, chat, completions, and whether it is well."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Literal, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from typing_extensions import TypedDict

from orchestrator.auth.keys import Caller, wants
from orchestrator.auth.rate_limit import Reservation
from orchestrator.gateway.body import before, parsed, read_body, while_there
from orchestrator.gateway.errors import RetryAfter
from orchestrator.gateway.http import EventStream
from orchestrator.gateway.request_context import InFlight, RequestContext
from orchestrator.gateway.services import GatewayServices
from orchestrator.gateway.shadow import Shadows
from orchestrator.openai.answers import ModelEntry, ModelList
from orchestrator.openai.response import ChatReply, Reply
from orchestrator.openai.schema import ChatBody, CompletionBase, CompletionBody
from orchestrator.openai.stream import choices, events, whole
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.rollout.traffic import Served
from workers.engine.request import AdapterRef, Chunk, TextRequest
from workers.engine.turns import Turns

Asker = Annotated[Caller, Depends(wants("infer"))]
Reader = Annotated[Caller, Depends(wants("infer", counts="asks"))]
WAITING = 256
"""Large bodies of one key that may wait to be read."""


class Backend(Protocol):
    """What generates: a `TextEngine`, or a Serve handle to replicas of it."""

    def generate(self, request: TextRequest) -> AsyncGenerator[Chunk]:
        """The answer, piece by piece; closing it takes the request back."""
        ...

    async def encode(self, requests: Sequence[TextRequest]) -> tuple[tuple[int, ...], ...]:
        """Token ids of their prompts; RequestError for the first one that would be refused."""
        ...

    async def load(self, adapter: AdapterRef) -> None:
        """Hold an adapter ready everywhere."""
        ...

    async def ready(self) -> bool:
        """Whether a request would be answered now."""
        ...


class Alive(TypedDict):
    """The gateway runs."""

    status: Literal["ok"]


class Readiness(TypedDict):
    """Whether a request would be answered, and whether the registry can be read."""

    ready: bool
    registry: bool


class Gateway:
    """The routes."""

    def __init__(self, backend: Backend, catalog: ModelCatalog, services: GatewayServices) -> None:
        self._backend, self._catalog = backend, catalog
        self._in_flight, self._shadows, self.retry_after = InFlight(), Shadows(), RetryAfter()
        self._turns = Turns(WAITING)
        self._services = replace(services, observers=(*services.observers, self.retry_after))

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Follow the registry for as long as the application runs; at its end drain."""
        tasks = [asyncio.create_task(run()) for run in (self._catalog.watch, *self._services.tasks)]
        yield
        await self.drain()
        await self._shadows.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def in_flight(self) -> int:
        """Requests between arrival and end."""
        return self._in_flight.count

    async def drain(self) -> None:
        """Be unready, let no more requests in, and return when the last has ended."""
        await self._in_flight.drain(self._services.limits.request_seconds)

    async def health(self) -> Alive:
        """The gateway runs."""
        return {"status": "ok"}

    async def ready(self) -> JSONResponse:
        """An engine answers; also whether the registry does."""
        settled = self._catalog.settled and self._services.keys.settled
        ready = settled and not self._in_flight.draining and await self._backend.ready()
        status: Readiness = {"ready": ready, "registry": self._catalog.readable}
        return JSONResponse(status, 200 if ready else 503)

    async def list_models(self, _: Reader) -> ModelList:
        """The base and every name that is served."""
        return {"object": "list", "data": [_model(id) for id in self._catalog.ids]}

    async def show_model(self, model: str, _: Reader) -> ModelEntry:
        """One model; NAME@VERSION too."""
        await self.find(model)
        return _model(model)

    async def find(self, model: str) -> Served:
        """What it means now; InputError where it is not served."""
        return await self._catalog.find(model)

    async def chat(self, request: Request, caller: Asker) -> Response:
        """Answer a chat."""
        return await self._answer(request, caller, ChatBody, ChatReply)

    async def complete(self, request: Request, caller: Asker) -> Response:
        """Continue a text."""
        return await self._answer(request, caller, CompletionBody, Reply)

    async def _answer(
        self, request: Request, caller: Caller, body: type[CompletionBase], kind: type[Reply]
    ) -> Response:
        context = RequestContext(caller, self._services)
        with context.until_failure():
            self._in_flight.add(context)
            self._services.limiter.admit(caller)
            async with before(context.deadline):
                raw = await read_body(request)
                asked = await parsed(body, raw, self._turns, caller.id)
                self._services.limiter.admit(caller, asked.answers, counted=1)
                context.reservation = self._reserve(caller, asked)
                work = self._stream if asked.stream else self._whole
                return await while_there(request, work(asked, kind, context))

    def _reserve(self, caller: Caller, body: CompletionBase) -> Reservation | None:
        longest = self._services.max_new_tokens, self._services.limits.max_prompt_tokens
        return self._services.limiter.reserve(
            caller, *body.likely_tokens(*longest), body.prompt_field
        )

    async def _whole(
        self, body: CompletionBase, kind: type[Reply], context: RequestContext
    ) -> Response:
        reply, chunks = await self._begin(body, kind, context)
        response = JSONResponse(await whole(reply, chunks))
        context.end()
        return response

    async def _stream(
        self, body: CompletionBase, kind: type[Reply], context: RequestContext
    ) -> Response:
        reply, chunks = await self._begin(body, kind, context)
        try:
            first = await anext(chunks)  # what is wrong with the request shows here, as a status
        except BaseException:
            await chunks.aclose()
            raise
        return EventStream(events(reply, first, chunks, body.include_usage), chunks, context)

    async def _begin(
        self, body: CompletionBase, kind: type[Reply], context: RequestContext
    ) -> tuple[Reply, AsyncGenerator[Chunk]]:
        route = await self._catalog.route(body.model, context.asked_for(body.end_user))
        served = route.served
        requests = body.requests(served.adapter, context.caller.id)
        reply = kind(served.id, served.fingerprint, body.tells_routing)
        context.by(served, route.role, reply.id)
        context.asked(requests[0])
        if route.shadow is not None and body.answers == 1:
            self._cast(route.shadow, requests[0], context)
        if len(requests) > 1:  # a later one's fault would come after the status
            requests = await self._encoded(requests, context)
        return reply, context.follow(choices(self._backend.generate, requests, body.n))

    async def _encoded(
        self, requests: Sequence[TextRequest], context: RequestContext
    ) -> tuple[TextRequest, ...]:
        prompts = await self._backend.encode(requests)
        context.read(sum(map(len, prompts)))
        pairs = zip(requests, prompts, strict=True)
        return tuple(replace(request, prompt=prompt) for request, prompt in pairs)

    def _cast(self, shadow: Served, request: TextRequest, context: RequestContext) -> None:
        """Let a shadow answer the request too."""
        beside = RequestContext(context.caller, self._services)
        beside.by(shadow, "shadow", context.request)
        beside.asked_for(context.user)
        beside.asked(request)
        chunks = self._backend.generate(replace(request, adapter=shadow.adapter))
        self._shadows.begin(beside, chunks, context)


def _model(id: str) -> ModelEntry:
    return {"id": id, "object": "model", "created": 0, "owned_by": "moetune"}
