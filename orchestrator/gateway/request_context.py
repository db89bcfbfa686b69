"""One request from its arrival to its end, and what the observers are told of it."""

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Literal

from starlette.requests import ClientDisconnect

from orchestrator.auth.keys import ANONYMOUS, Caller
from orchestrator.auth.rate_limit import Reservation
from orchestrator.gateway.body import GONE, before
from orchestrator.gateway.services import GatewayServices
from orchestrator.openai.errors import as_failure
from orchestrator.rollout.traffic import Role, Served
from orchestrator.telemetry.request_record import RequestRecord, steady, today
from workers.engine.request import Chat, Chunk, RequestError, TextRequest
from workers.engine.routing.types import RequestRouting
from workers.engine.timing import Timing

log = logging.getLogger(__name__)


class RequestContext:
    """A request that is being answered. Tells every observer exactly once, when it has ended."""

    def __init__(self, caller: Caller, services: GatewayServices) -> None:
        self.caller = caller
        self._observers, self._texts = services.observers, services.texts
        self._at, self._came, self._begun = today(), steady(), time.monotonic()
        self.deadline = asyncio.get_running_loop().time() + services.limits.request_seconds
        """By the loop's clock; what is later is cut off."""
        self._by: Served | None = None
        self._role = "served"
        self.request = ""
        """The answer's id."""
        self.user = ""
        """Whom it was asked for."""
        self._asked: TextRequest | None = None
        self._text = ""
        self._agreement: float | None = None
        self.tokens: list[int] = []
        """What was generated so far."""
        self.reservation: Reservation | None = None
        """Of the caller's quota."""
        self.ended = asyncio.Event()
        self._prompt_tokens = self._read = 0
        self._first: float | None = None
        self._routing: RequestRouting | None = None
        self._timing: Timing | None = None
        self._failure: RequestError | None = None

    def by(self, served: Served, role: Role | Literal["shadow"], request: str) -> None:
        """Say who answers, why this one, and under which id."""
        self._by, self._role, self.request = served, role, request

    def asked(self, request: TextRequest) -> None:
        """Say what was asked, of several prompts the first; it is told where texts are."""
        self._asked = request

    def agrees(self, with_: Sequence[int]) -> None:
        """Compare with another answer to the same request."""
        same = sum(ours == theirs for ours, theirs in zip(self.tokens, with_, strict=False))
        self._agreement = same / max(len(self.tokens), len(with_), 1)

    @property
    def whole(self) -> bool:
        """Whether nothing has failed so far."""
        return self._failure is None

    def asked_for(self, user: str | None) -> str:
        """What keeps with one version: the user that the request names, else the key; with neither
        each request is on its own."""
        lone = self.caller is ANONYMOUS
        self.user = user or (secrets.token_hex(8) if lone else self.caller.id)
        return self.user

    async def follow(self, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
        """The same chunks, counted; several answers to one request add up."""
        async with aclosing(chunks):
            try:
                while chunk := await self._next(chunks):
                    self._count(chunk)
                    if chunk.tokens or chunk.finish:  # else it only says that it has begun
                        yield chunk
            except Exception as error:  # a stream turns it into an event, and ends well
                self._failed(error)
                raise

    def read(self, prompt_tokens: int) -> None:
        """The prompts have so many tokens, as far as that is known; raises where they are too many
        for the caller's quota."""
        if self.reservation is not None and prompt_tokens > self._read:
            self._read = prompt_tokens
            self.reservation.read(prompt_tokens)

    @contextmanager
    def until_failure(self) -> Iterator[None]:
        """A failure in here ends the request."""
        try:
            yield
        except BaseException as error:
            self._failed(error)
            self.end()
            raise

    async def noting(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        """The same events; remembers why they stopped early."""
        try:
            async for event in events:
                yield event
        except BaseException as error:
            self._failed(error)
            raise

    def end(self) -> None:
        """Tell the observers, if nobody has."""
        if self.ended.is_set():
            return
        self.ended.set()
        record = self._record()
        if self.reservation is not None:
            self.reservation.settle(record.prompt_tokens + record.completion_tokens)
        for observer in self._observers:
            try:
                observer(record)
            except Exception:
                log.exception("an observer of requests failed")

    async def _next(self, chunks: AsyncGenerator[Chunk]) -> Chunk | None:
        async with before(self.deadline):
            return await anext(chunks, None)

    def _count(self, chunk: Chunk) -> None:
        self.read(chunk.prompt_tokens)
        if self._first is None and chunk.tokens:
            self._first = time.monotonic() - self._begun
        self.tokens += chunk.tokens
        if self._texts and chunk.index == 0:
            self._text += chunk.text
        self._prompt_tokens = chunk.prompt_tokens
        self._routing = chunk.routing or self._routing
        if chunk.index == 0:
            self._timing = chunk.timing or self._timing

    def _failed(self, error: BaseException) -> None:
        """The first failure is the cause of the others."""
        self._failure = self._failure or _as_failure(error)

    def _record(self) -> RequestRecord:
        failure = self._failure
        return RequestRecord(
            at=self._at,
            came=self._came,
            request=self.request,
            name=self._by.name if self._by else None,
            version=self._by.fingerprint if self._by else "-",
            caller=self.caller.id,
            status=failure.status if failure else 200,
            error=(failure.code or "invalid_request") if failure else None,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self.tokens),
            seconds=time.monotonic() - self._begun,
            first_token_seconds=self._first,
            role=self._role,
            agreement=self._agreement,
            routing=self._routing,
            timing=self._timing,
            user=hashlib.sha256(self.user.encode(errors="surrogatepass")).hexdigest()[:16],
            prompt=_text_of(self._asked) if self._asked and self._texts else None,
            answer=self._text if self._texts else None,
        )


def _as_failure(error: BaseException) -> RequestError:
    if isinstance(error, GeneratorExit | asyncio.CancelledError | ClientDisconnect):
        return GONE
    return as_failure(error, "")


def _text_of(request: TextRequest) -> str:
    match request.prompt:
        case str(text):
            return text
        case Chat(messages, ()):
            return json.dumps(list(messages), ensure_ascii=False)
        case Chat(messages, tools):
            asked = {"messages": list(messages), "tools": list(tools)}
            return json.dumps(asked, ensure_ascii=False)
        case ids:
            return json.dumps(ids)


class InFlight:
    """All requests between arrival and end."""

    def __init__(self) -> None:
        self.draining = False
        """Whether no more are let in."""
        self._in_flight: set[RequestContext] = set()

    @property
    def count(self) -> int:
        """Requests that have not ended."""
        return len(self._still())

    def add(self, context: RequestContext) -> None:
        """Let a request in; RequestError 503 while draining."""
        if self.draining:
            raise RequestError("the gateway is closing", None, 503, "closing")
        self._in_flight = {*self._still(), context}

    async def drain(self, seconds: float) -> None:
        """Let nothing more in, and wait for the last to end, but not longer than this."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for context in self._still():
                    await context.ended.wait()

    def _still(self) -> set[RequestContext]:
        return {context for context in self._in_flight if not context.ended.is_set()}
