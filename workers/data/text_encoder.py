"""Text and chats as token ids: the one place for it, in training as in serving.

What people write is text: `<|im_end|>` in it is so many characters. Control tokens come from the
chat template alone, and from the tokenizer where it puts one before every text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeVar

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from workers.config.base import InputError
from workers.data.chat import Turn
from workers.data.example import Span
from workers.data.nested import texts_in, with_texts
from workers.data.rendering.answers import Answers, WrittenAnswer
from workers.data.rendering.control_tokens import ControlTokens, Offsets
from workers.data.rendering.spans import Spans, TextSpan
from workers.data.rendering.template import ChatTemplate, Tools, special_tokens

Ids = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """A text on its way to the tokenizer."""

    text: str
    spelled: bool = False
    """Whether it spells out control tokens, and so wants the tokenizer that has none to write."""
    begins: bool = False
    """Whether it comes behind what the tokenizer begins every text with."""
    answers: tuple[TextSpan, ...] = ()
    """What of it is learned."""
    ended: bool = False
    """Whether an end of turn of its own is its last token."""

    @property
    def parts(self) -> list[str]:
        """The text, cut where an answer begins."""
        cuts = [0, *(one.start for one in self.answers), None]
        return [self.text[start:stop] for start, stop in pairwise(cuts)]


class Encoded(NamedTuple):
    """A text as token ids, and which of them are learned."""

    ids: Ids
    spans: tuple[Span, ...] = ()
    ended: bool = False
    """Whether it has its end of turn."""


class TextEncoder:
    """Token ids by one tokenizer, and by its chat template or one's own. Its errors are InputErrors
    of one line that do not say where the text came from; who knows that adds it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._beginning = _beginning(tokenizer)
        self.template = ChatTemplate(tokenizer, template)
        self._control = ControlTokens(tokenizer, self.template.around_a_turn())
        self._answers = Answers(self.template)
        self._spans = Spans(self._answers, self._control.masked)

    def chat(self, messages: Sequence[Turn], tools: Tools = ()) -> Ids:
        """A chat up to where the assistant's answer begins. InputError where the template fails, or
        leaves out what a turn says."""
        return self.ids([self.written_chat(messages, tools)])[0]

    def written_chat(
        self, messages: Sequence[Turn], tools: Tools = (), *, learned: bool = False
    ) -> Written:
        """The same for `encoded`; with `learned`, the answers in it are."""

        def write(turns: Sequence[Turn], schemas: Tools) -> tuple[str, tuple[TextSpan, ...]]:
            rendered = self.template.render(turns, schemas)
            self.template.check(rendered, turns, schemas)
            return rendered, self._spans.of(rendered, turns, schemas) if learned else ()

        (rendered, spans), spelled = self._quoting(write, messages, tools)
        if not spelled:
            return Written(rendered, answers=spans)
        named, placed = self._control.named_at(rendered)
        moved = (TextSpan(placed(one.start), placed(one.stop), one.weight) for one in spans)
        return Written(named, spelled, answers=tuple(moved))

    def written_answer(self, messages: Sequence[Turn], tools: Tools, answer: Turn) -> Written:
        """What the template writes for an answer to a chat, up to its end of turn; with that where
        it ends otherwise than one of text, as some templates' calls do."""

        def write(turns: Sequence[Turn], schemas: Tools) -> WrittenAnswer:
            return self._answers.written(turns[:-1], schemas, turns[-1])

        (said, end), spelled = self._quoting(write, [*messages, answer], tools)
        ended = end != self.template.end
        said += end if ended else ""
        return Written(self._control.named(said) if spelled else said, spelled, ended=ended)

    def prompt(self, text: str) -> Ids:
        """A text to be gone on with: behind what the tokenizer begins every text with, and without
        what it may end one with."""
        return self.ids([self.written(text, begins=True)])[0]

    def text(self, text: str) -> Ids:
        """The text alone."""
        return self.ids([self.written(text)])[0]

    def written(self, text: str, *, begins: bool = False) -> Written:
        """The same for `encoded`."""
        return Written(text, self.spells_control(text), begins)

    def ids(self, texts: Sequence[Written]) -> list[Ids]:
        """Token ids of each, in one call of the tokenizer. InputError where one cannot be read."""
        return [one.ids for one in self.encoded(texts)]

    def encoded(self, texts: Sequence[Written]) -> list[Encoded]:
        """The same, and what of each is learned. An answer begins with a token of its own, as one
        does that a server writes behind a prompt."""
        offsets = any(one.answers for one in texts)
        plain = self._plain(
            [part for one in texts if not one.spelled for part in one.parts], offsets
        )
        spelled = self._spelled(
            [part for one in texts if one.spelled for part in one.parts], offsets
        )
        return [
            self._joined(one, islice(spelled if one.spelled else plain, len(one.parts)))
            for one in texts
        ]

    def spells_control(self, value: Any) -> bool:
        """Whether a text, or one in a value of JSON, spells out a control token."""
        return any(map(self._control.spelled_in, texts_in(value)))

    def end(self, *, chat: bool) -> Ids:
        """What ends an answer of text. InputError names the model."""
        own = chat and self.template.own is not None
        where = "data.chat_template" if own else f"model.path: {self._tokenizer.name_or_path}"
        if chat and not self.template.there:
            raise InputError(f"{where}: has no chat template; set data.template: plain")
        try:
            ids = self.text_of_template(self.template.end) if chat else ()
        except InputError as error:
            raise InputError(f"{where}: a question and its answer: {error}") from None
        if own and ids and not self._is_special(ids[0]):
            raise InputError(
                f"{where}: ends an answer with {self.template.end!r}, which begins with no special "
                "token of the base's tokenizer: no server could stop there"
            )
        if not ids and self._tokenizer.eos_token_id is None:
            raise InputError(f"{where}: its tokenizer has no end of text")
        return ids or (self._tokenizer.eos_token_id,)

    def stops(self, *, chat: bool) -> tuple[int, ...]:
        """Tokens at which a server stops: the first of what ends an answer of text, and of what
        ends one that calls tools."""
        calls = self.template.ends[1:] if chat and self.template.there else ()
        ends = [self.end(chat=chat), *map(self.text_of_template, calls)]
        return tuple(dict.fromkeys(ids[0] for ids in ends))

    @cached_property
    def behind_reasoning(self) -> str:
        """What parts an answer's reasoning from the answer, in text without special tokens."""
        if not self.template.there:
            return ""
        ids = self.text_of_template(self.template.behind_reasoning)
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _is_special(self, token: int) -> bool:
        return self._tokenizer.convert_ids_to_tokens(token) in special_tokens(self._tokenizer)

    def text_of_template(self, text: str) -> Ids:
        """Of a text that the template wrote: its control tokens are."""
        return self.ids([Written(text)])[0]

    def _quoting(
        self, write: Callable[[Sequence[Turn], Tools], T], messages: Sequence[Turn], tools: Tools
    ) -> tuple[T, bool]:
        """What `write` makes of turns and tools in which control tokens that people spelled out
        are quoted; and whether there are any. What it says against them comes from the same without
        quotations: their marks are secret."""
        if not any(map(self.spells_control, (*messages, *tools))):
            return write(list(messages), list(tools)), False
        quoted = self._control.quoted
        turns, schemas = ([with_texts(x, quoted) for x in both] for both in (messages, tools))
        with suppress(InputError):
            return write(turns, schemas), True
        write(list(messages), list(tools))
        raise InputError("the chat template refuses a control token that is spelled out")

    def _joined(self, text: Written, parts: Iterator[tuple[Ids, Offsets]]) -> Encoded:
        ids = [*(self._beginning if text.begins else ()), *next(parts)[0]]
        spans = []
        for answer, (more, offsets) in zip(text.answers, parts, strict=True):
            said = sum(1 for start, _ in offsets if start < answer.stop - answer.start)
            spans.append(Span(len(ids), len(ids) + said, answer.weight))
            ids += more
        return Encoded(tuple(ids), tuple(spans), text.ended)

    def _spelled(self, texts: list[str], offsets: bool) -> Iterator[tuple[Ids, Offsets]]:
        if not texts:
            return iter(())
        if offsets:
            return iter(self._control.text_ids_at(texts))
        return ((ids, ()) for ids in self._control.text_ids(texts))

    def _plain(self, texts: list[str], offsets: bool) -> Iterator[tuple[Ids, Offsets]]:
        tokenizer = self._tokenizer
        if not texts:
            return iter(())
        if tokenizer.is_fast and offsets:
            found = _bare(tokenizer).encode_batch(texts, add_special_tokens=False)
            return ((tuple(one.ids), one.offsets) for one in found)
        if tokenizer.is_fast:
            found = _bare(tokenizer).encode_batch_fast(texts, add_special_tokens=False)
            return ((tuple(one.ids), ()) for one in found)
        if offsets:
            raise InputError("data.loss_on: all wants a fast tokenizer, which the base has not")
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ((tuple(one), ()) for one in ids)


def _bare(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer's library, which gives what the tokenizer would: each call of the tokenizer
    leaves its own way of cutting and filling up behind."""
    library: Tokenizer = tokenizer.backend_tokenizer
    if library.truncation is not None:
        library.no_truncation()
    if library.padding is not None:
        library.no_padding()
    if library.encode_special_tokens != tokenizer.split_special_tokens:
        library.encode_special_tokens = tokenizer.split_special_tokens
    return library


def _beginning(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """What the tokenizer puts before every text."""
    whole, bare = (
        tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False)
    )
    places = range(len(whole) - len(bare) + 1)
    start = next((at for at in places if whole[at : at + len(bare)] == bare), 0)
    return tuple(whole[:start])
