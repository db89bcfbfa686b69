"""What an engine is asked and what it answers: plain values, no torch, fit to cross processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from workers.spec import InputError, PositiveInt, Spec

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Finish = Literal["stop", "length"]
Piece = tuple[tuple[int, ...], Finish | None]
"""New tokens of an answer, and at its end why it ended."""


class RequestError(InputError):
    """A request that is not served: what was wrong, with which field, and the HTTP status."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message, param, status, code)  # all of it, so that pickle keeps it
        self.message, self.param, self.status, self.code = message, param, status, code

    def __str__(self) -> str:
        return self.message


class Limits(Spec):
    """What an engine may hold."""

    max_batch_tokens: PositiveInt = 512
    """Tokens of one forward pass, over all requests."""
    cache_tokens: PositiveInt = 8192
    """Tokens that the key-value cache holds."""
    max_new_tokens: PositiveInt = 256
    """Longest answer; also the default of a request that names none."""
    max_queued: PositiveInt = 64
    """Requests that may wait for room in the cache."""
    max_adapters: PositiveInt = 8
    """Adapter versions held at once; the least recently used idle one makes room."""


class Sampling(Spec):
    """How tokens are drawn, and how many."""

    max_tokens: PositiveInt
    """Tokens to generate at most."""
    temperature: Temperature = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: TopP = 1.0
    """Draw from the likeliest tokens that make this share of the probability."""
    seed: Seed = 0
    """The same seed, prompt and adapter give the same answer."""


@dataclass(frozen=True)
class Adapter:
    """An adapter version: the slot that it lies in, and the folder that it is read from."""

    slot: str
    folder: str


@dataclass(frozen=True)
class Chat:
    """Messages with `role` and `content`, oldest first."""

    messages: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class TextRequest:
    """A prompt, and how to answer it."""

    prompt: str | tuple[int, ...] | Chat
    """Text, token ids, or a chat."""
    adapter: Adapter | None
    """None is the bare base model."""
    seed: int
    max_tokens: int | None = None
    """None takes the engine's limit, or what the context leaves."""
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    generated: tuple[int, ...] = ()
    """Tokens of this answer that another replica generated already."""

    @property
    def param(self) -> str:
        """The field that the prompt came from, for error messages."""
        return "messages" if isinstance(self.prompt, Chat) else "prompt"


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer. The last one has a `finish`."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    """Tokens generated so far, this piece included."""
    finish: Finish | None = None
