"""OpenAI's completions protocol: what we take.

A field that we do not know, or not with that value, is refused by name and never ignored, except
for null, which OpenAI's clients send for "not set".
"""

import asyncio
import secrets
import time
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from orchestrator.openai_parts import PARTS, Body, Extras, Message, ResponseFormat, StreamOptions
from workers.engine.request import (
    Adapter,
    Chat,
    RequestError,
    Seed,
    Temperature,
    TextRequest,
    TopLogprobs,
    TopP,
)
from workers.engine.turns import Turns
from workers.spec import PositiveInt

Stop = Annotated[str, Field(min_length=1, max_length=200)]
Prompt = str | Annotated[list[int], Field(fail_fast=True)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Shown = Annotated[str, Field(min_length=1)] | Ids
"""A prompt as the description has it; the engine refuses the others, and knows its vocabulary."""
LARGE = 2**16
"""Bytes of a body that one other request may wait for."""
REST = 4
"""Times as long as a large body took to read, its tenant's next one waits."""
BodyT = TypeVar("BodyT", bound="CompletionBase")
BYTES = 4
"""Of a text for each token, as a guess."""
TURN = 4
"""Tokens that come to a turn of a chat, as a guess."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _likely_tokens(text: str) -> int:
    return -(-len(text.encode(errors="surrogatepass")) // BYTES)


def _short(user: str | None) -> str:
    """A user for the engine, which need not know the name, however long."""
    if not user:
        return ""
    return blake2b(user.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _single(value: Any) -> Any:
    """A list of one prompt is that prompt; a list of several is not supported."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > 1:
            raise ValueError("only one prompt at a time is supported")
        return value[0]
    return value


class CompletionBase(Body):
    """Fields of both kinds of completion."""

    prompt_field: ClassVar[str]
    """Where the prompt is."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    max_tokens: PositiveInt | None = None
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: PositiveInt | None = None
    seed: Seed | None = None
    stop: Annotated[
        list[Stop],
        BeforeValidator(_listed, json_schema_input_type=Stop | list[Stop]),
        Field(max_length=4),
    ] = Field([])
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] = 1
    user: str | None = None
    response_format: ResponseFormat | None = None
    moetune: Extras | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true only")
        if self.moetune is not None and self.n > 1:
            raise ValueError("moetune.routing is for n: 1 only")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def tells_routing(self) -> bool:
        """Whether the answer tells which experts gave it."""
        return self.moetune is not None

    def likely_tokens(self, longest: int) -> tuple[int, int]:
        """How many tokens the prompt may well have, and the answers at most, where one has
        `longest`. The tokenizer is elsewhere: a text's tokens are guessed from its bytes."""
        each = min(self._limit() or longest, longest)
        return self._likely_prompt_tokens(), self.n * each

    def request(self, adapter: Adapter | None, tenant: str = "") -> TextRequest:
        """What the engine is asked, for `tenant`. Without a seed every request draws its own."""
        return TextRequest(
            prompt=self._prompt(),
            adapter=adapter,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            max_tokens=self._limit(),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=tuple(self.stop),
            schema=self.response_format.text if self.response_format else None,
            logprobs=self._logprobs(),
            routing=self.moetune.routing if self.moetune else None,
            tenant=tenant,
            user=_short(self.user),
        )

    def _prompt(self) -> str | tuple[int, ...] | Chat:
        raise NotImplementedError

    def _likely_prompt_tokens(self) -> int:
        raise NotImplementedError

    def _limit(self) -> int | None:
        return self.max_tokens

    def _logprobs(self) -> int | None:
        raise NotImplementedError


class ChatBody(CompletionBase):
    """Body of /v1/chat/completions."""

    prompt_field = "messages"
    messages: Annotated[list[Message], Field(min_length=1, max_length=PARTS, fail_fast=True)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.max_tokens and self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: true only")
        return self

    def _prompt(self) -> Chat:
        return Chat(tuple(message.plain() for message in self.messages))

    def _likely_prompt_tokens(self) -> int:
        return sum(TURN + _likely_tokens(message.content) for message in self.messages)

    def _limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def _logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(CompletionBase):
    """Body of /v1/completions."""

    prompt_field = "prompt"
    prompt: Annotated[Prompt, BeforeValidator(_single, json_schema_input_type=Shown | list[Shown])]
    logprobs: TopLogprobs | None = None

    def _prompt(self) -> str | tuple[int, ...]:
        return self.prompt if isinstance(self.prompt, str) else tuple(self.prompt)

    def _likely_prompt_tokens(self) -> int:
        return _likely_tokens(self.prompt) if isinstance(self.prompt, str) else len(self.prompt)

    def _logprobs(self) -> int | None:
        return self.logprobs


async def parsed(body: type[BodyT], raw: bytes, turns: Turns, tenant: str) -> BodyT:
    """`parse`, where it may take long beside the event loop and in this tenant's turn. It lets no
    other thread run for most of its time, so the tenant rests for a multiple of it."""
    if len(raw) <= LARGE:
        return parse(body, raw)
    async with turns.of(tenant):
        begun = time.perf_counter()
        try:
            return await asyncio.to_thread(parse, body, raw)
        finally:
            turns.rest(tenant, REST * min(time.perf_counter() - begun, 1))


def parse(body: type[BodyT], raw: bytes) -> BodyT:
    """Read a request's body; RequestError names the first field that is wrong."""
    try:
        return body.model_validate_json(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a union pydantic reports every member, named behind the field: the deepest came furthest.
    same = [e for e in errors if e["loc"][:1] == errors[0]["loc"][:1]]
    first = max(same, key=lambda e: len(e["loc"]))
    path = [str(p) for p in first["loc"] if p not in ("str", "list[int]")]
    param = ".".join(path) or None
    message = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "extra_forbidden":
            raise RequestError(f"{param} is not supported", param, code="unsupported_parameter")
        case "missing":
            raise RequestError(f"{param} is missing", param, code="missing_required_parameter")
        case "json_invalid":
            raise RequestError(f"the body is no JSON: {message}", code="invalid_json")
    where = f"{param}: " if param else ""
    raise RequestError(f"{where}{message}", param, code="invalid_value")
