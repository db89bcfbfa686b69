"""One request on its way through an engine."""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator
from copy import copy
from dataclasses import dataclass, field

from workers.engine.prefix_cache import Salt
from workers.engine.request import Asker, Finish, Piece, RequestError, Sampling
from workers.engine.routing.tally import RoutingTally
from workers.engine.sampler import SamplingState
from workers.engine.structured_output.schema import Schema
from workers.engine.timing import Timer

QUANTUM = 32
"""New tokens before a request that runs may be taken back: what was read for it is not in vain."""


@dataclass(eq=False)
class TokenSequence:
    """A request's state, written by the engine's threads and read by its own event loop."""

    number: int
    """Order of arrival."""
    prompt: tuple[int, ...]
    slot: str | None
    asker: Asker
    sampling: Sampling
    tokens: list[int]
    """Generated so far."""
    schema: Schema | None = None
    seconds: float = math.inf
    """Until it must have ended."""
    name: str = ""
    """What the generation thread knows it by; another each time that it is handed over."""
    salt: Salt = ()
    """Whose cache pages it shares."""
    turn: tuple[int, ...] = ()
    """When its prompt is read among those of others, the smaller the sooner."""
    known: int = 0
    """Tokens that it had when it was last handed to the generation thread."""
    deaths: int = 0
    """Times that the generation thread died under it."""
    computed: int = 0
    """Tokens that passed through the model for it, all of them; the generation thread counts."""
    tally: RoutingTally | None = None
    """What its tokens chose since it was last handed over; None on the bare base."""
    sampling_state: SamplingState = field(init=False)
    """How tokens are drawn since then."""
    timer: Timer = field(default_factory=Timer)
    """How long its passes took since then."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _aborted: bool = False
    _pieces: "asyncio.Queue[Piece | Exception]" = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self._deadline = self._loop.time() + self.seconds

    @property
    def size(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def proven(self) -> bool:
        """Whether it has survived a forward pass since it was last handed over."""
        return len(self.tokens) > self.known

    @property
    def settled(self) -> bool:
        """Whether it has got a quantum of tokens since then, and may be taken back."""
        return len(self.tokens) >= self.known + QUANTUM

    def hand_over(self, name: str, salt: Salt) -> None:
        """Begin anew, under another name: prompt and tokens will pass through the model again. The
        first time the reader hears of it, by a piece without tokens."""
        if not self.name:
            self.put(Piece(()))
        self.name, self.salt, self.known = name, salt, len(self.tokens)
        self.tally = RoutingTally(self.slot, self.sampling.by_token) if self.slot else None
        schema = copy(self.schema)  # a pass that still runs under the former name has the other
        if schema is not None:
            schema.restart(self.tokens)
        self.sampling_state, self.timer = SamplingState(self.sampling, schema), Timer()

    def take(self, new: tuple[int, ...], finish: Finish | None) -> None:
        """Tokens were drawn: the reader gets them, with what it wants to know of them."""
        self.tokens += new
        logprobs = self.sampling_state.logprobs
        told = tuple(logprobs.popleft() for _ in new) if logprobs else ()
        count = len(self.tokens) - self.known
        due = finish or count & (count - 1) == 0  # half of an answer that is cut off is told of
        self.put(Piece(new, finish, told, timing=self.timer.timing if due else None))

    def put(self, piece: Piece | Exception) -> None:
        """Hand a piece to the reader, from any thread."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody reads on
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def abort(self) -> None:
        """End the answer where it is; what was drawn and not read yet is dropped."""
        self._aborted = True
        self.put(Piece((), "stop"))  # wakes who waits for one

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The pieces as they come; ends after the last, raises what the engine put."""
        finish: Finish | None = None
        while finish is None:
            piece = Piece((), "stop") if self._aborted else await self._next()
            if isinstance(piece, Exception):
                raise piece
            finish = piece.finish
            yield piece

    async def _next(self) -> Piece | Exception:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._pieces.get()
        except TimeoutError:
            return RequestError(
                f"the answer took more than {self.seconds:g} seconds", None, 504, "timeout"
            )


def failed(reason: object) -> RequestError:
    """What a reader gets when the engine could not go on with this very request."""
    return RequestError(f"the engine failed: {reason}", status=500, code="engine_error")


def stopped(reason: object) -> RequestError:
    """What a reader gets when the engine could not go on with anybody's, or broke down under
    others again and again."""
    return RequestError(f"the engine has stopped: {reason}", status=503, code="engine_stopped")
