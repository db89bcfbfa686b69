"""What a chat template writes for an answer: what a served model would have to write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.config.base import InputError
from workers.data.chat import Turn
from workers.data.rendering.template import ChatTemplate, Tools, left_out

_SHOWN = 24
"""Characters of an answer's end in an error."""


class WrittenAnswer(NamedTuple):
    """An answer as the template writes it."""

    text: str
    end: str
    """Its end of turn."""


@dataclass(frozen=True)
class Answers:
    """Of chats by one template."""

    template: ChatTemplate

    def written(
        self, turns: Sequence[Turn], tools: Tools, answer: Turn, asked: str | None = None
    ) -> WrittenAnswer:
        """What the template writes for an answer. An answer of text alone is that text. `asked`:
        the turns' prompt, where it is rendered."""
        if "tool_calls" not in answer and "reasoning_content" not in answer:
            return WrittenAnswer(str(answer["content"]), self.template.end)
        asked = self.template.render(turns, tools) if asked is None else asked
        whole = self.template.render([*turns, answer], tools, prompt=False)
        if not whole.startswith(asked):
            raise InputError(
                "the chat template asks for the answer otherwise than it writes it: write calls "
                "and reasoning into the answer's content as the model is to write them"
            )
        said = whole[len(asked) :].rstrip()
        self._check(said, len(turns), answer)
        self.template.check_answer(answer, len(turns), tools)
        end = next((one for one in self.template.ends if said.endswith(one)), None)
        if end is None:
            raise InputError(
                f"the chat template ends turn {len(turns) + 1} with {said[-_SHOWN:]!r}, but an "
                f"answer of text with {self.template.end!r}: a server would not stop there; calls "
                "may end alike, or with a special token, which a template of your own may do "
                "(data.chat_template)"
            )
        return WrittenAnswer(said[: len(said) - len(end)], end)

    def _check(self, said: str, at: int, answer: Turn) -> None:
        reasoning = str(answer.get("reasoning_content", "")).strip()
        if reasoning not in said:
            raise left_out("the reasoning", at, answer)
        if answer["content"].strip() not in said:
            raise left_out("the text", at, answer)
        names = [call["function"]["name"] for call in answer.get("tool_calls", ())]
        if not all(name in said for name in names):
            raise left_out("the tool calls", at, answer)
