"""What any engine can do."""

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from workers.engine.request import NOBODY, AdapterRef, Asker, Limits, Piece, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Statistics:
    """An engine at one moment. The counts grow from its start."""

    running: int = 0
    """Requests that are generated for."""
    waiting: int = 0
    """Requests that wait for room in the cache."""
    adapters: int = 0
    """Adapter versions held."""
    reserved: float = 0.0
    """Share of the cache that the running requests may come to fill, 0 … 1."""
    passes: int = 0
    """Forward passes."""
    rows: int = 0
    """Requests in those passes, summed."""
    tokens: int = 0
    """Tokens in those passes, summed."""


class Engine(Protocol):
    """Generates tokens for requests that name an adapter, or none for the bare base."""

    limits: Limits
    max_length: int
    """Tokens that prompt and answer may have together."""
    tokenizer: "PreTrainedTokenizerBase"
    """The base model's."""
    device: str
    """What it computes on: cpu, cuda, …"""

    @property
    def healthy(self) -> bool:
        """Whether it generates; an engine that does not will not recover by itself."""
        ...

    def load(self, adapter: AdapterRef) -> None:
        """Hold an adapter ready. Blocks; raises InputError where it does not fit."""
        ...

    def unload(self, slot: str) -> None:
        """Drop an adapter: at once, or when the last request that it answers has ended. Blocks;
        a slot that is not held is no error."""
        ...

    def keep(self, slots: Collection[str]) -> None:
        """Say which slots, held or not yet, requests for others must not drive out: all of them,
        in place of those of last time."""
        ...

    def loaded(self) -> tuple[str, ...]:
        """Slots that are held, least recently used first; those on their way out are not."""
        ...

    def statistics(self) -> Statistics:
        """How much it has to do, and has done."""
        ...

    def check(
        self, prompt: Sequence[int], sampling: Sampling, generated: Sequence[int] = ()
    ) -> None:
        """Raises the RequestError that `generate` would begin with."""
        ...

    def generate(  # noqa: PLR0913, PLR0917 -- one request, whole
        self,
        prompt: Sequence[int],
        adapter: AdapterRef | None,
        sampling: Sampling,
        generated: Sequence[int] = (),
        asker: Asker = NOBODY,
        request_id: str = "",
    ) -> AsyncGenerator[Piece]:
        """New tokens behind `prompt` and `generated`; raises RequestError. Closing it cancels.
        A first piece without tokens says that the prompt is being read from now on.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End the answer of that name where it is: what follows is its last piece, without tokens.
        A request that has ended, or has no name, is no error."""
        ...

    def close(self) -> None:
        """Stop; requests that still run fail."""
        ...
