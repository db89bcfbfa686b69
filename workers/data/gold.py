"""What answers are scored against."""

from collections.abc import Sequence
from typing import Protocol


class Gold(Protocol):
    """What a score is taken against; `workers.data.rows.Row` is one."""

    @property
    def answer(self) -> str:
        """The right answer."""

    @property
    def references(self) -> Sequence[str]:
        """Texts that are all right; at least the answer."""

    @property
    def choices(self) -> Sequence[str]:
        """Texts to choose from, empty without choices."""

    @property
    def answer_index(self) -> int:
        """Which choice is right."""

    @property
    def prompt(self) -> str:
        """What was asked, as plain text."""

    @property
    def task(self) -> str:
        """The task that it belongs to."""

    @property
    def where(self) -> str:
        """Its file and row, for messages."""
