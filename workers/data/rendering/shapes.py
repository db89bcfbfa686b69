"""Turns of the shape of others, and tools, with marks in all their parts.

What a chat template leaves out of them it leaves out of those others. A short text that is left out
could stand elsewhere in a prompt by chance.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from workers.data.chat import Turn

_CALL_ID = "moetune01"
"""Of nine letters and digits, which some templates ask for."""


class Shape(NamedTuple):
    """What a turn has, whatever it says."""

    role: str
    text: bool
    calls: tuple[bool, ...]
    """Of each whether true, false or null are among its arguments."""
    reasoning: bool

    @classmethod
    def of(cls, turn: Turn) -> "Shape":
        """A turn's."""
        calls = tuple(_has_literals(call) for call in turn.get("tool_calls", ()))
        return cls(turn["role"], bool(turn["content"]), calls, "reasoning_content" in turn)

    def lacks(self, rendered: str, mark: str) -> set[str]:
        """What of it the rendering of its marked turn has not."""
        calls = [(f"{mark}-call-{at}", literals) for at, literals in enumerate(self.calls)]
        held = {
            "text": not self.text or f"{mark}-text." in rendered,
            "calls": all(f"{call}-name." in rendered for call, _ in calls),
            "arguments": all(has_arguments(rendered, *call) for call in calls),
            "reasoning": not self.reasoning or f"{mark}-reasoning." in rendered,
        }
        return {part for part, there in held.items() if not there}

    def marked(self, mark: str) -> Turn:
        """A turn of this shape, whose parts begin with the mark."""
        turn: dict[str, Any] = {"role": self.role, "content": f"{mark}-text." if self.text else ""}
        if self.calls:
            turn["tool_calls"] = [
                a_call(f"{mark}-call-{at}", literals) for at, literals in enumerate(self.calls)
            ]
        if self.reasoning:
            turn["reasoning_content"] = f"{mark}-reasoning."
        return turn if self.role != "tool" else turn | {"tool_call_id": _CALL_ID, "name": "?"}


def a_call(mark: str, literals: bool) -> dict[str, Any]:
    """A call whose parts begin with the mark."""
    arguments: dict[str, Any] = {
        f"{mark}-argument.": f"{mark}-value.",
        f"{mark}-object.": {f"{mark}-inner.": True},
    }
    if literals:
        arguments[f"{mark}-literal."] = True
    function = {"name": f"{mark}-name.", "arguments": arguments}
    return {"id": _CALL_ID, "type": "function", "function": function}


def has_arguments(rendered: str, mark: str, literals: bool) -> bool:
    """Whether those of such a call are there, and values such as true as JSON has them."""
    true = ("inner", "literal") if literals else ("inner",)
    return all(f"{mark}-{one}." in rendered for one in ("argument", "value", "object")) and all(
        re.search(rf"{re.escape(mark)}-{one}\.\W*true\b", rendered) for one in true
    )


def _has_literals(call: Mapping[str, Any]) -> bool:
    given = call["function"]["arguments"]
    return any(one is None or isinstance(one, bool) for one in given.values())


def with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as JSON text."""
    function = call["function"]
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def a_tool(mark: str) -> dict[str, Any]:
    """A tool whose parts begin with the mark."""
    name = f"{mark}-parameter."
    of_it = {name: {"type": "string", "description": "?"}}
    parameters = {"type": "object", "properties": of_it, "required": [name]}
    function = {"name": f"{mark}-name.", "description": "?", "parameters": parameters}
    return {"type": "function", "function": function}
