"""OpenAI's completions protocol: what we answer, field by field, in the order of the wire.

Plain dictionaries, whose types mypy checks where they are made and pydantic reads for the OpenAPI
document: a model of pydantic's own would cost each token of a stream more than its JSON does.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, GetPydanticSchema, with_config
from typing_extensions import TypedDict

from workers.engine.request import Finish
from workers.engine.routing.types import RequestRouting

documented = with_config(use_attribute_docstrings=True)
Count = Annotated[int, Field(ge=0)]
Routing = Annotated[dict[str, Any], GetPydanticSchema(lambda _, read: read(RequestRouting))]
"""As `asdict` gives it."""


@documented
class ErrorDetail(TypedDict):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    """The field of the request that it lies in."""
    code: str | None


class ErrorBody(TypedDict):
    """Every refusal and failure."""

    error: ErrorDetail


class ModelEntry(TypedDict):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(TypedDict):
    """The base, and every name that is served."""

    object: Literal["list"]
    data: list[ModelEntry]


class TokenCounts(TypedDict):
    """Tokens of an answer, and of what was asked."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class Extension(TypedDict):
    """`moetune` of an answer: what OpenAI's protocol has no word for."""

    routing: Routing


class Extended(TypedDict):
    """What that protocol's answers have beyond it."""

    moetune: NotRequired[Extension]


@documented
class AnswerHead(TypedDict):
    """How every answer begins, and every event of a stream."""

    id: str
    created: Count
    """Seconds since 1970."""
    model: str
    """The exact version that answers: NAME@VERSION, or the base."""
    system_fingerprint: str


@documented
class TextLogprobs(TypedDict):
    """Log-probabilities of a completion's tokens, in four lists of the same length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Where each token begins, in characters of the whole answer."""


@documented
class TextChoice(TypedDict):
    """One continuation, or a piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None
    """null in all pieces but the last."""


@documented
class Completion(AnswerHead):
    """Continuations of a text; streamed, an event with a piece of one."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: NotRequired[TokenCounts]
    """Of a stream in its last event, where `stream_options.include_usage` asks for it."""
    moetune: NotRequired[Extension]
    """Where the request asks for it."""


@documented
class TokenEntry(TypedDict):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    """In UTF-8; of a part of a character where a token is one."""


class ChatToken(TokenEntry):
    """A token of the answer, and what else was likely there."""

    top_logprobs: list[TokenEntry]


class ChatLogprobs(TypedDict):
    """Log-probabilities of a chat's tokens."""

    content: list[ChatToken]
    refusal: None


class ChatMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


@documented
class ChatDelta(TypedDict):
    """A piece of what the model says."""

    role: NotRequired[Literal["assistant"]]
    """In a choice's first event."""
    content: NotRequired[str]


class ChatChoice(TypedDict):
    """One answer of a chat."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


@documented
class ChatPiece(TypedDict):
    """A piece of an answer of a chat."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    """null in all pieces but the last."""


@documented
class ChatCompletion(AnswerHead):
    """Answers of a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: TokenCounts
    moetune: NotRequired[Extension]
    """Where the request asks for it."""


@documented
class ChatCompletionChunk(AnswerHead):
    """An event of a chat's stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPiece]
    usage: NotRequired[TokenCounts]
    """In the last event, where `stream_options.include_usage` asks for it."""
    moetune: NotRequired[Extension]
    """Where the request asks for it, in the last event of the answer."""
