"""Prompt and target as token ids, in training exactly as in serving."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.counts import RowCounts
from workers.data.example import Example, Span
from workers.data.rows import Row
from workers.data.text_encoder import Encoded, Ids, TextEncoder, Written

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
    """Token ids that end an answer of text: the chat template's end of turn, or the end of text."""
    stops: tuple[int, ...] = field(init=False)
    """Tokens at which a server stops."""
    text: TextEncoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", TextEncoder(self.tokenizer, self.data.chat_template))
        chat = self.data.template == "chat"
        object.__setattr__(self, "end", self.text.end(chat=chat))
        object.__setattr__(self, "stops", self.text.stops(chat=chat))

    def kept(
        self, rows: Iterable[Row], counts: RowCounts, scored: bool = False
    ) -> Iterator[tuple[Row, Example]]:
        """The rows that `data.too_long` keeps, each encoded, and `counts` of all. What is `scored`
        must have room for its choices too. InputError for a row that is refused, or if none is
        left. Rows are taken some at a time: the tokenizer encodes them in one call."""
        yield from self.some_kept(rows, counts, scored)
        counts.check_left()

    def some_kept(
        self, rows: Iterable[Row], counts: RowCounts, scored: bool = False
    ) -> Iterator[tuple[Row, Example]]:
        """The same of some of a source's rows, of which none may be left."""
        for row, (prompt, target, *choices) in self._encoded(rows, scored):
            if self.spells_control(row):
                counts.spelled(row)
            try:
                example = self._fit(row, prompt, self._ended(target))
                for choice in choices:
                    self._fit(row, prompt, choice.ids)
            except TooLongError:
                if self.data.too_long != "skip":
                    raise
                counts.skip(row)
                continue
            counts.add(row, example)
            yield self._scored_as(row, target.ids), example

    @cached_property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return int(max(self.tokenizer.get_vocab().values())) + 1

    def example(self, row: Row) -> Example:
        """Prompt and target of a row; a prompt that is too long loses its beginning."""
        [(prompt, target)] = self._all([row], scored=False)
        return self._fit(row, prompt, self._ended(target))

    def choices(self, row: Row) -> list[Example]:
        """One example for each choice of a row, to be compared by log-likelihood."""
        [(prompt, _, *choices)] = self._all([row], scored=True)
        alone = replace(row, weight=1.0)
        return [self._fit(alone, Encoded(prompt.ids), choice.ids) for choice in choices]

    def spells_control(self, row: Row) -> bool:
        """Whether a row's text spells out a control token."""
        answer = row.answer_turn or row.target
        return self.text.spells_control([answer, *row.messages, *row.tools])

    def _encoded(
        self, rows: Iterable[Row], scored: bool
    ) -> Iterator[tuple[Row, Sequence[Encoded]]]:
        for some in chunks(rows, CHUNK):
            encoded: Iterable[Sequence[Encoded]]
            try:
                encoded = self._all(some, scored)
            except InputError:  # one by one: those before the bad one come out, and it is named
                encoded = (self._all([row], scored)[0] for row in some)
            yield from zip(some, encoded, strict=True)

    def _all(self, rows: Sequence[Row], scored: bool) -> list[Sequence[Encoded]]:
        """Of each row its prompt, its target and, where they are scored, its choices. InputError
        where that cannot be; it names the row where there is only one."""
        try:
            texts = [self._texts(row, scored) for row in rows]
            encoded = iter(self.text.encoded([*chain.from_iterable(texts)]))
        except InputError as error:
            raise InputError(f"{rows[0].where}: {error}") from None
        return [[*islice(encoded, len(some))] for some in texts]

    def _texts(self, row: Row, scored: bool) -> list[Written]:
        text, learned = self.text, self.data.loss_on == "all"
        choices = map(text.written, row.choices if scored else ())
        if self.data.template == "plain":
            return [text.written(row.prompt, begins=True), text.written(row.target), *choices]
        prompt = text.written_chat(row.messages, row.tools, learned=learned)
        if row.answer_turn is None:
            return [prompt, text.written(row.target), *choices]
        return [prompt, text.written_answer(row.messages, row.tools, row.answer_turn), *choices]

    def _ended(self, target: Encoded) -> Ids:
        return target.ids if target.ended else target.ids + self.end

    def _fit(self, row: Row, prompt: Encoded, target: Ids) -> Example:
        if not prompt.ids:
            raise InputError(f"{row.where}: its prompt is empty")
        most = self.data.max_length
        if len(target) >= most and self.data.too_long != "cut":
            raise TooLongError(
                f"{row.where}: its target has {len(target)} tokens, and leaves no room for a "
                f"prompt in data.max_length, which is {most}; data.too_long may be skip or cut"
            )
        # A target that is cut leaves its prompt half of the room, if that needs so much.
        room = most - 1 if len(target) < most else most - min(len(prompt.ids), most // 2)
        kept = target[:room]
        shown = prompt.ids[len(kept) - most :]
        lost = (len(prompt.ids) - len(shown), len(target) - len(kept))
        spans = (*_kept(prompt.spans, lost[0]), Span(len(shown), len(shown + kept), row.weight))
        if not target:
            raise InputError(f"{row.where}: one of its choices has no tokens")
        if not any(span.weight and span.start < span.stop for span in spans):
            raise TooLongError(
                f"{row.where}: of its answers, all that have a weight begin before what "
                f"data.max_length keeps, which is {most}, or have no tokens; data.too_long may be "
                "skip"
            )
        return Example(shown + kept, spans, lost)

    def _scored_as(self, row: Row, target: Ids) -> Row:
        """A row whose answer is without the reasoning before it, and a call as its template writes
        it: that is what an answer is compared with, unless the row says otherwise."""
        if self.data.template == "plain":
            return row
        row = replace(row, behind_reasoning=self.text.behind_reasoning)
        said = row.target
        if row.calls:
            said = self.tokenizer.decode(target, skip_special_tokens=True).strip()
        said = row.scored(said)
        answer = said if row.answer == row.target else row.answer
        references = tuple(said if one == row.target else one for one in row.references)
        return replace(row, target=said, answer=answer, references=references)


def _kept(spans: Iterable[Span], lost: int) -> Iterator[Span]:
    """Of earlier answers those that are whole in what is kept."""
    for span in spans:
        if span.start >= lost:
            yield replace(span, start=span.start - lost, stop=span.stop - lost)


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows so many at a time. Where a row cannot be read, those before it come first."""
    unread = iter(rows)
    failed: InputError | None = None
    while failed is None:
        some: list[Row] = []
        try:
            some.extend(islice(unread, size))
        except InputError as error:
            failed = error
        if some:
            yield some
        elif failed is None:
            return
    raise failed
