"""OpenAI's completions protocol: what we take.

A field that we do not know, or not with that value, is refused by name and never ignored, except
for null, which OpenAI's clients send for "not set", and values that ask for nothing
(`openai_neutral`).
"""

import json
import secrets
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestrator.openai.content import PARTS, Extras, Message, ResponseFormat, StreamOptions
from orchestrator.openai.neutral import (
    ONLY,
    Neutral,
    NeutralChat,
    NeutralText,
    unsupported,
)
from orchestrator.openai.prompt import Prompts, each
from orchestrator.openai.tools import Tools, shallow
from workers.config.base import PositiveInt
from workers.engine.request import (
    AdapterRef,
    Chat,
    Seed,
    Temperature,
    TextRequest,
    TopLogprobs,
    TopP,
)

Stop = Annotated[str, Field(min_length=1, max_length=200)]
Prompt = str | tuple[int, ...] | Chat
BYTES = 4
"""Of a text for each token, as a guess."""
TURN = 4
"""Tokens that come to a turn of a chat, as a guess."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _likely_tokens(prompt: Prompt) -> int:
    match prompt:
        case str(text):
            return -(-len(text.encode(errors="surrogatepass")) // BYTES)
        case Chat(messages, tools):
            turns = [one for turn in messages for name, one in turn.items() if name != "role"]
            said = sum(_likely_tokens(_as_text(one)) for one in (*turns, *tools))
            return TURN * len(messages) + said
        case ids:
            return len(ids)


def _as_text(said: Any) -> str:
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def _short(user: str | None) -> str:
    """A user for the engine, which need not know the name, however long."""
    if not user:
        return ""
    return blake2b(user.encode(errors="surrogatepass"), digest_size=8).hexdigest()


class CompletionBase(Neutral):
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
        if self.include_usage and not self.stream:
            raise ValueError("stream_options.include_usage is for stream: true only")
        if self.moetune is not None and self.answers > 1:
            raise ValueError("moetune.routing is for one prompt and n: 1 only")
        _ = self._guesses  # now: a large body is read beside the event loop, and asked on it
        return self

    @property
    def answers(self) -> int:
        """Of all its prompts together."""
        return self.n * len(self.prompts)

    @property
    def end_user(self) -> str | None:
        """Whom it is asked for, in the words of who asks."""
        return self.user

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def tells_routing(self) -> bool:
        """Whether the answer tells which experts gave it."""
        return self.moetune is not None

    def likely_tokens(self, longest: int, prompt: int | None = None) -> tuple[int, int]:
        """How many tokens the prompts may well have, none more than `prompt`, and the answers at
        most, where one has `longest`. The tokenizer is elsewhere: a text's tokens are guessed from
        its bytes."""
        answer = min(self._limit() or longest, longest)
        return sum(min(one, prompt or one) for one in self._guesses), self.answers * answer

    def requests(self, adapter: AdapterRef | None, tenant: str = "") -> tuple[TextRequest, ...]:
        """What the engine is asked, for `tenant`: a request for each prompt. Without a seed every
        body draws its own."""
        first, *others = self.prompts
        request = self._request(first, adapter, tenant)
        return (request, *(replace(request, prompt=prompt) for prompt in others))

    def _request(self, prompt: Prompt, adapter: AdapterRef | None, tenant: str) -> TextRequest:
        return TextRequest(
            prompt=prompt,
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
            user=_short(self.end_user),
        )

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """What is to be answered."""
        raise NotImplementedError

    @cached_property
    def _guesses(self) -> list[int]:
        """Of each prompt's tokens."""
        return [_likely_tokens(one) for one in self.prompts]

    def _limit(self) -> int | None:
        return self.max_tokens

    def _logprobs(self) -> int | None:
        raise NotImplementedError


class ChatBody(NeutralChat, CompletionBase):
    """Body of /v1/chat/completions."""

    prompt_field = "messages"
    messages: Annotated[list[Message], Field(min_length=1, max_length=PARTS, fail_fast=True)]
    tools: Tools = Field([])
    tool_choice: Annotated[Literal["none", "auto"], ONLY] = "auto"
    """none: the tools are not shown to the model."""
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None

    @field_validator("messages")
    @classmethod
    def _few_calls(cls, messages: list[Message]) -> list[Message]:
        shallow([message.turn.get("tool_calls") for message in messages])
        return messages

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise ValueError("max_tokens and max_completion_tokens are the same; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: true only")
        return self

    @property
    def end_user(self) -> str | None:
        """Under OpenAI's old name or its new one."""
        return self.user or self.safety_identifier

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """One."""
        tools = () if self.tool_choice == "none" else tuple(self.tools)
        return (Chat(tuple(message.turn for message in self.messages), tools),)

    def _limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def _logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(NeutralText, CompletionBase):
    """Body of /v1/completions."""

    prompt_field = "prompt"
    prompt: Prompts
    logprobs: TopLogprobs | None = None
    best_of: PositiveInt = 1

    @field_validator("best_of")
    @classmethod
    def _all_are_told(cls, value: int, info: ValidationInfo) -> int:
        """As many as are told is the same as not to choose."""
        if value not in (1, info.data.get("n", value)):
            raise unsupported()
        return value

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """One, or several."""
        return each(self.prompt)

    def _logprobs(self) -> int | None:
        return self.logprobs
