"""Where in a chat the assistant speaks, and what it says there, out of the template itself.

An answer is what a model that was served the turns before it would have to write: the prompt for
them must begin the chat that has the answer. Templates that rewrite earlier turns, such as those
that drop earlier reasoning, fail this proof where that matters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from workers.config.base import InputError
from workers.data.chat import Turn, weight
from workers.data.template import ChatTemplate, Tools, holds, lasting, left_out

_ELSE = "data.loss_on: last does without, and so does a template with {% generation %} marks"

_SHOWN = 24
"""Characters of an answer's end in an error."""


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Characters of a rendered prompt that an earlier answer takes, its end of turn included."""

    start: int
    stop: int
    weight: float


@dataclass(frozen=True)
class Answers:
    """Of chats by one template."""

    template: ChatTemplate
    masked: Callable[[str], str]
    """A rendered chat, as long, without the control tokens that people spelled out in it."""

    def text(
        self, turns: Sequence[Turn], tools: Tools, answer: Turn, asked: str | None = None
    ) -> str:
        """What the template writes for an answer, up to its end of turn. An answer of text alone
        is that text. `asked`: the turns' prompt, where it is rendered."""
        if "tool_calls" not in answer and "reasoning_content" not in answer:
            return str(answer["content"])
        asked = self.template.render(turns, tools) if asked is None else asked
        whole = self.template.render([*turns, answer], tools, prompt=False)
        if not whole.startswith(asked):
            raise InputError(
                "the chat template asks for the answer otherwise than it writes it: write calls "
                "and reasoning into the answer's content as the model is to write them"
            )
        said = whole[len(asked) :].rstrip()
        end = self.template.end
        self._check(said, len(turns), answer)
        self.template.check_answer(answer, len(turns), tools)
        if not said.endswith(end):
            raise InputError(
                f"the chat template ends turn {len(turns) + 1} with {said[-_SHOWN:]!r}, but an "
                f"answer of text with {end!r}: all answers must end alike, which a template of "
                "your own may do (data.chat_template)"
            )
        return said[: len(said) - len(end)]

    def spans(self, rendered: str, turns: Sequence[Turn], tools: Tools) -> tuple[TextSpan, ...]:
        """The answers among the turns of a rendered prompt, but for those of weight 0."""
        marks = self.template.marks(turns, tools)
        if marks is None:
            return tuple(self._proven(rendered, turns, tools))
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

    def _proven(self, rendered: str, turns: Sequence[Turn], tools: Tools) -> Iterator[TextSpan]:
        masked, end = self.masked(rendered), self.template.end
        for at, turn in enumerate(turns):
            if turn["role"] != "assistant" or not weight(turn):
                continue
            if at == 0:
                raise InputError("turn 1 is an answer to nothing; give it weight 0")
            asked = self.template.render(turns[:at], tools)
            stop = masked.find(end, len(asked)) if end else -1
            same = stop >= 0 and rendered.startswith(asked)
            answer = self.text(turns[:at], tools, turn, asked)
            if not same or rendered[len(asked) : stop].strip() != answer.strip():
                raise InputError(
                    f"the chat template writes turn {at + 1} into later prompts otherwise than it "
                    f"is answered; {_ELSE}"
                )
            yield TextSpan(len(asked), stop + len(end), weight(turn))

    def _ended(self, rendered: str, start: int, stop: int) -> tuple[int, int]:
        """A marked span with its end of turn, and nothing behind it."""
        end = self.template.end
        inside = rendered.rfind(end, start, stop) if end else -1
        if inside >= 0 and not rendered[inside + len(end) : stop].strip():
            return start, inside + len(end)
        return start, stop + len(end) * rendered.startswith(end, stop)

    def _check(self, said: str, at: int, answer: Turn) -> None:
        reasoning = str(answer.get("reasoning_content", "")).strip()
        if reasoning not in said:
            raise left_out("the reasoning", at, answer)
        if answer["content"].strip() not in said:
            raise left_out("the text", at, answer)
        names = [call["function"]["name"] for call in answer.get("tool_calls", ())]
        if not all(name in said for name in names):
            raise left_out("the tool calls", at, answer)
