"""A chat template: chats as the text that a model is asked with. It is a program of the model's or
the user's, which transformers runs in its sandbox."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from workers.config.base import InputError, one_line
from workers.data.chat import Turn, rendered_fields

_MARK = "moetune-marks-a-turn"
_CALL_ID = "moetune01"
"""Of nine letters and digits, which some templates ask for."""
_SHAPES = 256
"""Sequences of turns whose fate in the template is remembered."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Tools = Sequence[Mapping[str, Any]]


class _Shape(NamedTuple):
    """What a turn has, whatever it says."""

    role: str
    text: bool
    calls: int
    reasoning: bool

    @classmethod
    def of(cls, turn: Turn) -> "_Shape":
        calls = len(turn.get("tool_calls", ()))
        return cls(turn["role"], bool(turn["content"]), calls, "reasoning_content" in turn)

    def marked(self, mark: str) -> Turn:
        turn: dict[str, Any] = {"role": self.role, "content": mark if self.text else ""}
        if self.calls:
            turn["tool_calls"] = [_call(f"{mark}-call-{at}.") for at in range(self.calls)]
        if self.reasoning:
            turn["reasoning_content"] = "?"
        return turn if self.role != "tool" else turn | {"tool_call_id": _CALL_ID, "name": "?"}


class ChatTemplate:
    """Renders by the tokenizer's template, or by one's `own`. Its errors are InputErrors."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, own: str | None = None) -> None:
        self._tokenizer, self.own = tokenizer, own
        self._dropped = lru_cache(_SHAPES)(self._left_out)

    @property
    def there(self) -> bool:
        """Whether there is one."""
        return bool(self.own or self._tokenizer.chat_template)

    def render(self, turns: Sequence[Turn], tools: Tools = (), *, prompt: bool = True) -> str:
        """The chat as text; with `prompt`, up to where the assistant's answer begins."""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [rendered_fields(turn) for turn in turns],
                    tools=list(tools) or None,
                    chat_template=self.own,
                    add_generation_prompt=prompt,
                    tokenize=False,
                )
            )
        except Exception as error:  # The template is a program: it may fail anyhow.
            raise InputError(f"the chat template refuses it: {one_line(error)}") from None

    def marks(self, turns: Sequence[Turn], tools: Tools = ()) -> list[tuple[int, int]] | None:
        """Where in the rendered prompt the template says that the assistant speaks; None where it
        does not say so."""
        try:
            source = self._tokenizer.get_chat_template(self.own, list(tools) or None)
            if not _GENERATION.search(source):
                return None
            _, [found] = render_jinja_template(
                [[rendered_fields(turn) for turn in turns]],
                tools=list(tools) or None,
                chat_template=source,
                return_assistant_tokens_mask=True,
                add_generation_prompt=True,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # as above
            raise InputError(f"the chat template refuses it: {one_line(error)}") from None
        return [(int(start), int(stop)) for start, stop in found]

    def check(self, rendered: str, turns: Sequence[Turn], tools: Tools = ()) -> None:
        """InputError where the template has left out what somebody wrote."""
        dropped = self._dropped(tuple(map(_Shape.of, turns)), bool(tools))
        if "tools" in dropped:
            raise InputError("the chat template leaves out the tools")
        for at, turn in enumerate(turns):
            text = _lasting(turn)
            if text and (f"text {at}" in dropped or not _holds(rendered, text)):
                raise left_out("the text", at, turn)
            if f"calls {at}" in dropped:
                raise left_out("the tool calls", at, turn)

    @cached_property
    def end(self) -> str:
        """What it writes behind an answer."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        _, found, behind = self.render(turns, prompt=False).rpartition(_MARK)
        if not found:
            raise InputError("the chat template leaves out an assistant's text")
        # Without the line break before the next turn, which no server waits for.
        return behind.rstrip()

    def around_a_turn(self) -> str:
        """A turn as it writes it; nothing where it wants others, which `end` tells."""
        if not self.there:
            return ""
        try:
            return self.render([{"role": "user", "content": "?"}])
        except InputError:
            return ""

    def _left_out(self, shapes: tuple[_Shape, ...], tools: bool) -> frozenset[str]:
        """What the template leaves out whatever it says; a short text that is left out could stand
        elsewhere in the prompt by chance."""
        marks = [f"{_MARK}-{at}." for at in range(len(shapes))]
        turns = [shape.marked(mark) for shape, mark in zip(shapes, marks, strict=True)]
        rendered = self.render(turns, [_tool(f"{_MARK}-tool.")] if tools else ())
        gone = {f"text {at}" for at, mark in enumerate(marks) if mark not in rendered}
        for at, (shape, mark) in enumerate(zip(shapes, marks, strict=True)):
            if any(f"{mark}-call-{one}." not in rendered for one in range(shape.calls)):
                gone.add(f"calls {at}")
        return frozenset(
            gone | ({"tools"} if tools and f"{_MARK}-tool." not in rendered else set())
        )


def left_out(what: str, at: int, turn: Turn) -> InputError:
    """The error for something of a turn, numbered from 0, that is not rendered."""
    return InputError(f"the chat template leaves out {what} of turn {at + 1} ({turn['role']})")


def _call(mark: str) -> dict[str, Any]:
    function = {"name": mark, "arguments": {"a": "?"}}
    return {"id": _CALL_ID, "type": "function", "function": function}


def _tool(mark: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "?"}}}
    function = {"name": mark, "description": "?", "parameters": {**parameters, "required": ["a"]}}
    return {"type": "function", "function": function}


def _lasting(turn: Turn) -> str:
    """The text that a template must keep; some drop an earlier answer's reasoning by intent."""
    text = str(turn["content"])
    return (text.rpartition("</think>")[2] if turn["role"] == "assistant" else text).strip()


def _holds(rendered: str, text: str) -> bool:
    """Whether the prompt has the text: as it stands, or quoted as JSON, as some do with tools'."""
    return text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered
