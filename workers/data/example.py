"""One row as token ids, and which of them the loss counts."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens from `start` to before `stop`, which the loss counts."""

    start: int
    stop: int
    weight: float = 1.0
    """What each of them counts for, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row."""

    ids: Sequence[int]
    """All its tokens: a tuple, or an array out of the token store."""
    spans: tuple[Span, ...]
    """What is learned, in order and apart; the last is the answer, with its end of turn (a choice
    to be scored: without the end of turn)."""
    lost: tuple[int, int] = (0, 0)
    """Tokens that prompt and target lost."""

    @classmethod
    def of(
        cls, prompt: Sequence[int], target: Sequence[int], lost: tuple[int, int] = (0, 0)
    ) -> "Example":
        """A prompt, and the one target behind it."""
        ids = (*prompt, *target)
        return cls(ids, (Span(len(prompt), len(ids)),), lost)

    @property
    def prompt(self) -> tuple[int, ...]:
        """What the answer follows."""
        return tuple(map(int, self.ids[: self.spans[-1].start]))

    @property
    def target(self) -> tuple[int, ...]:
        """The answer."""
        last = self.spans[-1]
        return tuple(map(int, self.ids[last.start : last.stop]))

    @property
    def learned(self) -> int:
        """Tokens that the loss counts."""
        return sum(span.stop - span.start for span in self.spans if span.weight)

    def __len__(self) -> int:
        return len(self.ids)
