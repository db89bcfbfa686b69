"""Prompt and target as token ids, in training exactly as in serving."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.counts import RowCounts
from workers.data.example import Example
from workers.data.rows import Row
from workers.data.text_encoder import TextEncoder


class TooLongError(InputError):
    """A target that leaves no room for a prompt."""


@dataclass(frozen=True)
class Encoder:
    """Turns rows into token ids by the tokenizer's chat template, or as plain text."""

    tokenizer: PreTrainedTokenizerBase
    data: DataSpec
    end: tuple[int, ...] = field(init=False)
    """Token ids that end an answer: the chat template's end of turn, or the end of text."""
    text: TextEncoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", TextEncoder(self.tokenizer))
        object.__setattr__(self, "end", self.text.end(chat=self.data.template == "chat"))

    def kept(
        self, rows: Iterable[Row], counts: RowCounts, scored: bool = False
    ) -> Iterator[tuple[Row, Example]]:
        """The rows that `data.too_long` keeps, each encoded, and `counts` of all. What is `scored`
        must have room for its choices too. InputError for a row that is refused, or if none is
        left."""
        for row in rows:
            try:
                example = self.example(row)
                if scored and row.choices:
                    self.choices(row)
            except TooLongError:
                if self.data.too_long != "skip":
                    raise
                counts.skip(row)
                continue
            counts.add(row, example)
            yield row, example
        if not counts.rows:
            raise InputError(f"{counts.source}: no row is left; {counts.losses()}")

    def example(self, row: Row) -> Example:
        """Prompt and target of a row; a prompt that is too long loses its beginning."""
        return self._examples(row, (row.target,), self.end)[0]

    def choices(self, row: Row) -> list[Example]:
        """One example for each choice of a row, to be compared by log-likelihood."""
        return self._examples(row, row.choices)

    def spells_control(self, row: Row) -> bool:
        """Whether a row's text spells out a control token."""
        turns = (message["content"] for message in row.messages)
        return any(map(self.text.spells_control, (row.target, *turns)))

    def _examples(self, row: Row, texts: Sequence[str], end: tuple[int, ...] = ()) -> list[Example]:
        """One for each text, behind the row's prompt. InputError, with file and row, where it
        cannot be."""
        try:
            prompt = self._prompt(row)
            targets = [self.text.text(text) + end for text in texts]
        except InputError as error:
            raise InputError(f"{row.where}: {error}") from None
        if not prompt:
            raise InputError(f"{row.where}: its prompt is empty")
        return [self._fit(row, prompt, target) for target in targets]

    def _fit(self, row: Row, prompt: tuple[int, ...], target: tuple[int, ...]) -> Example:
        most = self.data.max_length
        if len(target) >= most and self.data.too_long != "cut":
            raise TooLongError(
                f"{row.where}: its target has {len(target)} tokens, and leaves no room for a "
                f"prompt in data.max_length, which is {most}; data.too_long may be skip or cut"
            )
        # A target that is cut leaves its prompt half of the room, if that needs so much.
        room = most - 1 if len(target) < most else most - min(len(prompt), most // 2)
        kept = target[:room]
        shown = prompt[len(kept) - most :]
        return Example.of(shown, kept, (len(prompt) - len(shown), len(target) - len(kept)))

    def _prompt(self, row: Row) -> tuple[int, ...]:
        if self.data.template == "chat":
            return self.text.chat(row.messages)
        return self.text.prompt(row.prompt)
