"""One request on its way through an engine."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from workers.engine.request import Finish, Piece, RequestError, Sampling
from workers.engine.sampler import Draw
from workers.engine.tally import Tally


@dataclass(eq=False)
class Generation:
    """A request's state, written by the engine's threads and read by its own event loop."""

    number: int
    """Order of arrival."""
    prompt: tuple[int, ...]
    slot: str | None
    sampling: Sampling
    tokens: list[int]
    """Generated so far."""
    name: str = ""
    """What the generation thread knows it by; another each time that it is handed over."""
    known: int = 0
    """Tokens that it had when it was last handed to the generation thread."""
    deaths: int = 0
    """Times that the generation thread died under it."""
    tally: Tally | None = None
    """What its tokens chose since it was last handed over; None on the bare base."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _pieces: "asyncio.Queue[Piece | Exception]" = field(default_factory=asyncio.Queue)

    @property
    def size(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def proven(self) -> bool:
        """Whether it has survived a forward pass since it was last handed over."""
        return len(self.tokens) > self.known

    def hand_over(self, name: str) -> None:
        """Begin anew, under another name: prompt and tokens will pass through the model again."""
        self.name, self.known = name, len(self.tokens)
        self.tally = Tally(self.slot, self.sampling.by_token) if self.slot else None

    def draw(self, length: int) -> Draw:
        """How to draw the token behind a sequence of `length` tokens."""
        return Draw(self.sampling, length)

    def put(self, piece: Piece | Exception) -> None:
        """Hand a piece to the reader, from any thread."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody reads on
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def pieces(self) -> AsyncGenerator[Piece]:
        """The pieces as they come; ends after the last, raises what the engine put."""
        finish: Finish | None = None
        while finish is None:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                raise piece
            finish = piece.finish
            yield piece


def failed(reason: object) -> RequestError:
    """What a reader gets when the engine could not go on."""
    return RequestError(f"the engine failed: {reason}", status=500, code="engine_error")
