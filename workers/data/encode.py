"""Prompt and target as token ids, in training exactly as in serving."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.counts import RowCounts
from workers.data.example import Example
from workers.data.rows import Row
from workers.data.text_encoder import Ids, TextEncoder, Written

CHUNK = 256
"""Rows that are tokenized in one call: more are no quicker, and the last one is waited for."""


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
        left. Rows are taken some at a time: the tokenizer encodes them in one call."""
        for row, (prompt, target, *choices) in self._encoded(rows, scored):
            try:
                example = self._fit(row, prompt, target + self.end)
                for choice in choices:
                    self._fit(row, prompt, choice)
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
        [(prompt, target)] = self._ids([row], scored=False)
        return self._fit(row, prompt, target + self.end)

    def choices(self, row: Row) -> list[Example]:
        """One example for each choice of a row, to be compared by log-likelihood."""
        [(prompt, _, *choices)] = self._ids([row], scored=True)
        return [self._fit(row, prompt, choice) for choice in choices]

    def spells_control(self, row: Row) -> bool:
        """Whether a row's text spells out a control token."""
        turns = (message["content"] for message in row.messages)
        return any(map(self.text.spells_control, (row.target, *turns)))

    def _encoded(self, rows: Iterable[Row], scored: bool) -> Iterator[tuple[Row, Sequence[Ids]]]:
        for some in _chunks(rows):
            ids: Iterable[Sequence[Ids]]
            try:
                ids = self._ids(some, scored)
            except InputError:  # one by one: those before the bad one come out, and it is named
                ids = (self._ids([row], scored)[0] for row in some)
            yield from zip(some, ids, strict=True)

    def _ids(self, rows: Sequence[Row], scored: bool) -> list[Sequence[Ids]]:
        """Of each row its prompt, its target and, where they are scored, its choices. InputError
        where that cannot be; it names the row where there is only one."""
        try:
            texts = [self._texts(row, scored) for row in rows]
            ids = iter(self.text.ids([*chain.from_iterable(texts)]))
        except InputError as error:
            raise InputError(f"{rows[0].where}: {error}") from None
        return [[*islice(ids, len(some))] for some in texts]

    def _texts(self, row: Row, scored: bool) -> list[Written]:
        written, chat = self.text.written, self.data.template == "chat"
        prompt = self.text.written_chat(row.messages) if chat else written(row.prompt, begins=True)
        return [prompt, written(row.target), *map(written, row.choices if scored else ())]

    def _fit(self, row: Row, prompt: Ids, target: Ids) -> Example:
        if not prompt:
            raise InputError(f"{row.where}: its prompt is empty")
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


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows some at a time. Where a row cannot be read, those before it come first."""
    unread = iter(rows)
    failed: InputError | None = None
    while failed is None:
        some: list[Row] = []
        try:
            some.extend(islice(unread, CHUNK))
        except InputError as error:
            failed = error
        if some:
            yield some
        elif failed is None:
            return
    raise failed
