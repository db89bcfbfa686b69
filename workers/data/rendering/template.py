"""A chat template: chats as the text that a model is asked with. It is a program of the model's or
the user's, which transformers runs in its sandbox."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from workers.config.base import InputError, one_line
from workers.data.chat import Turn, rendered_fields
from workers.data.rendering.shapes import Shape, a_call, a_tool, has_arguments, with_text

_MARK = "moetune-marks-a-turn"
_SHAPES = 256
"""Sequences of turns whose fate in the template is remembered."""
_TURNS = 64
"""Of the longest of them: callers of a server could fill its memory with others."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PARTS = {
    "text": "the text",
    "calls": "the tool calls",
    "arguments": "arguments (or writes them otherwise than as JSON)",
    "reasoning": "the reasoning",
}
"""Of a turn, as errors call them."""
Tools = Sequence[Mapping[str, Any]]


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
            return self._applied(self._given(turns), tools, prompt)
        except Exception as error:  # The template is a program: it may fail anyhow.
            raise InputError(f"the chat template refuses it: {one_line(error)}") from None

    def _applied(self, turns: list[dict[str, Any]], tools: Tools, prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                turns,
                tools=list(tools) or None,
                chat_template=self.own,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        )

    def marks(self, turns: Sequence[Turn], tools: Tools = ()) -> list[tuple[int, int]] | None:
        """Where in the rendered prompt the template says that the assistant speaks; None where it
        does not say so."""
        try:
            source = self._tokenizer.get_chat_template(self.own, list(tools) or None)
            if not _GENERATION.search(source):
                return None
            _, [found] = render_jinja_template(
                [self._given(turns)],
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
        look = self._dropped if len(turns) <= _TURNS else self._left_out
        dropped = look(tuple(map(Shape.of, turns)), bool(tools))
        if "name" in dropped:
            raise InputError("the chat template leaves out the tools")
        if "parameter" in dropped:
            raise InputError("the chat template leaves out the tools' parameters")
        for at, turn in enumerate(turns):
            text = lasting(turn)
            if text and (f"text {at}" in dropped or not holds(rendered, text)):
                raise left_out(_PARTS["text"], at, turn)
            for part in ("calls", "arguments"):
                if f"{part} {at}" in dropped:
                    raise left_out(_PARTS[part], at, turn)

    @cached_property
    def end(self) -> str:
        """What it writes behind an answer."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        _, found, behind = self.render(turns, prompt=False).rpartition(_MARK)
        if not found:
            raise InputError("the chat template leaves out an assistant's text")
        # Without the line break before the next turn, which no server waits for.
        return behind.rstrip()

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The same, and what it writes behind a call of tools, where that is a token of its own:
        Llama's `<|eom_id|>`, gpt-oss's `<|call|>`."""
        of_calls = (self._call_end(tools) for tools in ((), [a_tool(_MARK)]))
        return tuple(dict.fromkeys([self.end, *filter(None, of_calls)]))

    def _call_end(self, tools: Tools) -> str:
        calling = Shape("assistant", False, (False,), False).marked(_MARK)
        try:
            written = self.render([{"role": "user", "content": "?"}, calling], tools, prompt=False)
        except InputError:  # it has no place for calls
            return ""
        _, _, behind = written.rstrip().rpartition(_MARK)
        found = [one for one in special_tokens(self._tokenizer) if behind.endswith(one)]
        return "" if behind.endswith(self.end) else max(found, key=len, default="")

    @cached_property
    def behind_reasoning(self) -> str:
        """What it writes between an answer's reasoning and its text; nothing where it has no place
        for reasoning."""
        shape = Shape("assistant", True, (), True)
        try:
            turns = [{"role": "user", "content": "?"}, shape.marked(_MARK)]
            whole = self.render(turns, prompt=False)
        except InputError:
            return ""
        _, found, behind = whole.partition(f"{_MARK}-reasoning.")
        between, text, _ = behind.partition(f"{_MARK}-text.")
        return between if found and text else ""

    def around_a_turn(self) -> str:
        """A turn as it writes it; nothing where it wants others, which `end` tells."""
        if not self.there:
            return ""
        try:
            return self.render([{"role": "user", "content": "?"}])
        except InputError:
            return ""

    def check_answer(self, answer: Turn, at: int, tools: Tools = ()) -> None:
        """The same of an answer, which is turn `at`, whatever is before it."""
        question = Shape("user", True, (), False)
        dropped = self._dropped((question, Shape.of(answer)), bool(tools), prompt=False)
        for part, what in _PARTS.items():
            if f"{part} 1" in dropped:
                raise left_out(what, at, answer)

    def _left_out(
        self, shapes: tuple[Shape, ...], tools: bool, prompt: bool = True
    ) -> frozenset[str]:
        """What the template leaves out whatever it says."""
        marks = [f"{_MARK}-{at}" for at in range(len(shapes))]
        turns = [shape.marked(mark) for shape, mark in zip(shapes, marks, strict=True)]
        tool = f"{_MARK}-tool"
        rendered = self.render(turns, [a_tool(tool)] if tools else (), prompt=prompt)
        gone = {
            f"{part} {at}"
            for at, (shape, mark) in enumerate(zip(shapes, marks, strict=True))
            for part in shape.lacks(rendered, mark)
        }
        parts = ("name", "parameter") if tools else ()
        return frozenset(gone | {part for part in parts if f"{tool}-{part}." not in rendered})

    def _given(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        given = [rendered_fields(turn) for turn in turns]
        for turn in given:
            if turn.get("tool_calls") and self._wants_text:
                turn["tool_calls"] = [with_text(call) for call in turn["tool_calls"]]
        return given

    @cached_property
    def _wants_text(self) -> bool:
        """Whether it writes a call's arguments right only where they come as JSON text: DeepSeek's
        puts them together with text."""
        return not self._writes(a_call(_MARK, True)) and self._writes(
            with_text(a_call(_MARK, True))
        )

    def _writes(self, call: Mapping[str, Any]) -> bool:
        calling = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            rendered = self._applied([{"role": "user", "content": "?"}, calling], (), False)
        except Exception:  # as in render
            return False
        return has_arguments(rendered, _MARK, True)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Tokens that are no text."""
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(one.content for one in added if one.special)}


def left_out(what: str, at: int, turn: Turn) -> InputError:
    """The error for something of a turn, numbered from 0, that is not rendered."""
    return InputError(f"the chat template leaves out {what} of turn {at + 1} ({turn['role']})")


def lasting(turn: Turn) -> str:
    """The text that a template must keep; some drop an earlier answer's reasoning by intent."""
    text = str(turn["content"])
    return (text.rpartition("</think>")[2] if turn["role"] == "assistant" else text).strip()


def holds(rendered: str, text: str) -> bool:
    """Whether the prompt has the text: as it stands, or quoted as JSON, as some do with tools'."""
    return text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered
