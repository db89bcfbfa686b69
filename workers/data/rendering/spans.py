"""Where in a chat the assistant speaks: by the template's own marks, or by a proof.

An answer is what a model that was served the turns before it would have to write: the prompt for
them must begin the chat that has the answer. Templates that rewrite earlier turns, such as those
that drop earlier reasoning, fail this proof where that matters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from workers.config.base import InputError
from workers.data.chat import Turn, weight
from workers.data.rendering.answers import Answers
from workers.data.rendering.template import Tools, holds, lasting

_ELSE = "data.loss_on: last does without, and so does a template with {% generation %} marks"


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Characters of a rendered prompt that an earlier answer takes, its end of turn included."""

    start: int
    stop: int
    weight: float


@dataclass(frozen=True)
class _Chat:
    """A chat, and the prompt that it is rendered to."""

    rendered: str
    masked: str
    """The same without the control tokens that people spelled out in it."""
    turns: Sequence[Turn]
    tools: Tools


@dataclass(frozen=True)
class _Place:
    """An answer's turn, and where in the prompt it begins."""

    turn: int
    start: int


@dataclass(frozen=True)
class Spans:
    """Of the answers in chats by one template."""

    answers: Answers
    masked: Callable[[str], str]
    """A rendered chat, as long, without the control tokens that people spelled out in it."""

    def of(self, rendered: str, turns: Sequence[Turn], tools: Tools) -> tuple[TextSpan, ...]:
        """The answers among the turns of a rendered prompt, but for those of weight 0."""
        marks = self.answers.template.marks(turns, tools)
        if marks is None:
            chat = _Chat(rendered, self.masked(rendered), turns, tools)
            return tuple(self._proven(chat))
        spoken = [turn for turn in turns if turn["role"] == "assistant"]
        if len(marks) != len(spoken):
            raise InputError(
                f"the chat template marks {len(marks)} answers where {len(spoken)} assistant turns "
                "are; data.loss_on: last does without"
            )
        for at, ((start, stop), turn) in enumerate(zip(marks, spoken, strict=True), 1):
            if not holds(rendered[start:stop], lasting(turn)):
                raise InputError(
                    f"the chat template marks as answer {at} what has not its text; data.loss_on: "
                    "last does without"
                )
        return tuple(
            TextSpan(*self._ended(rendered, *mark), weight(turn))
            for mark, turn in zip(marks, spoken, strict=True)
            if weight(turn)
        )

    def _proven(self, chat: _Chat) -> Iterator[TextSpan]:
        """Each answer by the turns since the one before it, which takes as long however long the
        chat is. The whole of what is before it is rendered where these do not show it, and of the
        first, the second, the fourth answer and so on."""
        known: list[_Place] = []
        for at, turn in enumerate(chat.turns):
            if turn["role"] != "assistant" or not weight(turn):
                continue
            number = len(known) + 1
            near = self._by_what_is_near(chat, at, known) if number & (number - 1) else None
            span = near or self._by_all_before(chat, at)
            known.append(_Place(at, span.start))
            yield span

    def _by_all_before(self, chat: _Chat, at: int) -> TextSpan:
        if at == 0:
            raise InputError("turn 1 is an answer to nothing; give it weight 0")
        before = chat.turns[:at]
        asked = self.answers.template.render(before, chat.tools)
        span = self._answered(chat, at, before, asked, len(asked))
        if span is None or not chat.rendered.startswith(asked):
            raise InputError(
                f"the chat template writes turn {at + 1} into later prompts otherwise than it "
                f"is answered; {_ELSE}"
            )
        return span

    def _by_what_is_near(self, chat: _Chat, at: int, known: Sequence[_Place]) -> TextSpan | None:
        """The proof by a shorter chat: what precedes the first answer, and what follows the last
        one before `at`. It must be rendered to what the whole chat has for these turns. There they
        have all later turns behind them, and here none: a template that rewrites a turn when later
        ones come writes it otherwise here. None where it shows nothing."""
        first, last = known[0], known[-1]
        before = [*chat.turns[: first.turn], *chat.turns[last.turn : at]]
        opening = chat.rendered[: first.start]
        with suppress(InputError):
            asked = self.answers.template.render(before, chat.tools)
            since = asked[first.start :]
            if asked.startswith(opening) and chat.rendered.startswith(since, last.start):
                return self._answered(chat, at, before, asked, last.start + len(since))
        return None

    def _answered(
        self, chat: _Chat, at: int, before: Sequence[Turn], asked: str, start: int
    ) -> TextSpan | None:
        """Where the answer to a prompt stands from `start` on; None where it does not."""
        turn = chat.turns[at]
        answer, end = self.answers.written(before, chat.tools, turn, asked)
        stop = chat.masked.find(end, start) if end else -1
        if stop < 0 or chat.rendered[start:stop].strip() != answer.strip():
            return None
        return TextSpan(start, stop + len(end), weight(turn))

    def _ended(self, rendered: str, start: int, stop: int) -> tuple[int, int]:
        """A marked span with its end of turn, and nothing behind it."""
        for end in filter(None, self.answers.template.ends):
            inside = rendered.rfind(end, start, stop)
            if inside >= 0 and not rendered[inside + len(end) : stop].strip():
                return start, inside + len(end)
            if rendered.startswith(end, stop):
                return start, stop + len(end)
        return start, stop
