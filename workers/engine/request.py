"""What an engine is asked and what it answers: plain values, no torch, fit to cross processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from workers.config.base import InputError, PositiveInt, Spec
from workers.engine.routing.types import RequestRouting
from workers.engine.timing import Timing

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
PositiveSeconds = Annotated[float, Field(gt=0)]
TopLogprobs = Annotated[int, Field(ge=0, le=20)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
RoutingDetail = Literal["summary", "tokens"]
Finish = Literal["stop", "length"]


class RequestError(InputError):
    """A request that is not served: what was wrong, with which field, and the HTTP status.

    Codes of an engine: `engine_error` (500), `non_finite` (500: the model's logits were not all
    finite numbers), `invalid_schema` (400), `queue_full` (429), `engine_stopped` (503, whoever
    asked for what), `timeout` (504). Only the first two are held against a version.
    """

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message, param, status, code)  # all of it, so that pickle keeps it
        self.message, self.param, self.status, self.code = message, param, status, code

    def __str__(self) -> str:
        return self.message


class SchemaLimits(Spec):
    """How large a JSON schema may be that an answer is to obey, and what it may take to compile."""

    max_bytes: PositiveInt = 2**16
    """Of the schema as JSON text."""
    max_depth: PositiveInt = 64
    """Objects and lists inside one another."""
    max_values: PositiveInt = 10_000
    """Objects, lists and everything in them."""
    seconds: PositiveSeconds = 0.5
    """CPU time to compile it."""
    max_memory: PositiveInt = 2**26
    """Bytes to compile it."""


class Limits(Spec):
    """What an engine may hold."""

    max_batch_tokens: PositiveInt = 512
    """Tokens of one forward pass, over all requests."""
    cache_tokens: PositiveInt = 8192
    """Tokens that the key-value cache holds."""
    max_new_tokens: PositiveInt = 256
    """Longest answer; also the default of a request that names none."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest prompt; None is what context and cache leave."""
    max_queued: PositiveInt = 64
    """Requests that may wait for room in the cache. In a full queue the latest of the tenant with
    the most there makes room for one with fewer."""
    max_adapters: PositiveInt = 8
    """Adapter versions held at once; the least recently used idle one makes room."""
    request_seconds: PositiveSeconds = 600
    """Longest time from a request's arrival to its last token; then it fails with `timeout`."""
    share_prefixes: bool = False
    """Whether what one tenant's prompt computed serves another's."""
    schemas: SchemaLimits = SchemaLimits()
    """JSON schemas of requests."""


class Sampling(Spec):
    """How tokens are drawn, how many, and what is told of them."""

    max_tokens: PositiveInt
    """Tokens to generate at most."""
    temperature: Temperature = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: TopP = 1.0
    """Draw from the likeliest tokens that make this share of the probability."""
    top_k: PositiveInt | None = None
    """Draw from so many likeliest tokens at most; None is all."""
    seed: Seed = 0
    """The same seed, prompt and adapter give the same answer."""
    json_schema: str | None = None
    """JSON schema, as JSON text, that the answer obeys; `{}` is any JSON."""
    logprobs: TopLogprobs | None = None
    """Tell every token's log-probability, and so many of the likeliest in its place."""
    by_token: bool = False
    """Tell the routing of every token, not its summary alone."""
    ends: tuple[int, ...] = ()
    """Tokens that end the answer beside those of the base: an adapter may have its own template."""


@dataclass(frozen=True)
class TokenLogprobs:
    """What the model itself gave a token: before temperature, top_p, top_k and schema."""

    token: int
    logprob: float
    """Natural logarithm of the softmax of its logits."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place with theirs, likeliest first."""


@dataclass(frozen=True)
class Piece:
    """New tokens of an answer. The last piece has a `finish`."""

    tokens: tuple[int, ...]
    finish: Finish | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where the request asks for them."""
    routing: RequestRouting | None = None
    """On the last piece of an answer by an adapter with routers."""
    timing: Timing | None = None
    """Of the answer so far: with its first, second, fourth, eighth … token, and at its end."""


class Asker(NamedTuple):
    """Whose request it is: what one asker costs, the others must not feel."""

    tenant: str = ""
    """Such as the id of a key."""
    user: str = ""
    """Of the tenant's, whose."""


NOBODY = Asker()
"""The endpoint itself, or the one user of an engine."""


@dataclass(frozen=True)
class AdapterRef:
    """An adapter version: the slot that it lies in, and the folder that it is read from."""

    slot: str
    folder: str
    digest: str | None = None
    """`folder_digest` of what the slot holds, checked whenever it is read; None: whatever is there
    is taken."""


@dataclass(frozen=True)
class Chat:
    """Messages as chat templates are given them (`workers.data.chat.Turn`), oldest first."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the assistant may call, as OpenAI's `tools`."""


@dataclass(frozen=True)
class TextRequest:
    """A prompt, and how to answer it."""

    prompt: str | tuple[int, ...] | Chat
    """Text, token ids, or a chat."""
    adapter: AdapterRef | None
    """None is the bare base model."""
    seed: int
    max_tokens: int | None = None
    """None takes the engine's limit, or what the context leaves."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    """Draw from so many likeliest tokens at most; None is all."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    schema: str | None = None
    """JSON schema, as JSON text, that the answer obeys; `{}` is any JSON."""
    logprobs: int | None = None
    """Tell every token's log-probability, and so many of the likeliest (0 … 20) in its place."""
    routing: RoutingDetail | None = None
    """`tokens` adds every token's experts to the summary that the last chunk always has."""
    generated: tuple[int, ...] = ()
    """Tokens of this answer that another replica generated already."""
    tenant: str = ""
    """Whose request it is; see `Asker`."""
    user: str = ""

    @property
    def asker(self) -> Asker:
        """Whose request it is."""
        return Asker(self.tenant, self.user)

    @property
    def param(self) -> str:
        """The field that the prompt came from, for error messages."""
        return "messages" if isinstance(self.prompt, Chat) else "prompt"


@dataclass(frozen=True)
class TokenText:
    """A token as text, and what the model itself gave it."""

    text: str
    """Alone; half a character shows as the replacement character."""
    raw: bytes
    """What it adds to the text: half a character too, and of a special token nothing, but
    where tools were shown."""
    logprob: float
    """Natural logarithm of its probability, before temperature, top_p, top_k and schema."""
    top: tuple["TokenText", ...] = ()
    """The likeliest tokens in its place, likeliest first."""
    offset: int = 0
    """Where in the answer's text it begins, in characters; the tokens of a character share one."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer. The last one has a `finish`."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    """Tokens generated so far, this piece included."""
    finish: Finish | None = None
    logprobs: tuple[TokenText, ...] = ()
    """One for each of `tokens` but one that ends the answer, where the request asks for them. Their
    text may come later, or never: where a stop string begins, the answer ends."""
    routing: RequestRouting | None = None
    """On the last chunk of an answer by an adapter with routers."""
    timing: Timing | None = None
    """How long the engine has computed on the answer so far."""
    index: int = 0
    """Which of the answers to one prompt."""
