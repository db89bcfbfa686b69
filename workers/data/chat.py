"""A chat out of a record: its turns up to the answer, and the answer."""

from collections.abc import Mapping
from typing import Any

from workers.config.base import InputError
from workers.data.tools import tool_calls
from workers.data.values import is_empty, string

REASONING = ("reasoning_content", "reasoning", "thinking")
"""What a turn's reasoning is called; templates are given all of the names."""
_EVERY = ("role", "content")
OF_ROLE = {
    "assistant": ("tool_calls", "weight", *REASONING),
    "tool": ("tool_call_id", "name"),
}
"""Fields of the turns of one role."""

Turn = Mapping[str, Any]
"""`role` and `content`; an assistant's may have `tool_calls`, `reasoning_content` and `weight`, a
tool's `tool_call_id` and `name`."""


def chat(value: Any, where: str) -> tuple[tuple[Turn, ...], Turn]:
    """The turns before the last assistant turn, and that turn."""
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise InputError(f"{where}: messages must be a list of turns with role and content")
    turns = tuple(turn_of(turn, f"{where}: turn {at}") for at, turn in enumerate(value, 1))
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    if last == 0:
        raise InputError(f"{where}: messages need an assistant turn, and one before it")
    return turns[:last], turns[last]


def weight(turn: Turn) -> float:
    """What the tokens of an assistant's turn count for."""
    return float(turn.get("weight", 1))


def rendered_fields(turn: Turn) -> dict[str, Any]:
    """What a chat template is given of a turn: reasoning by all of its names."""
    given = {name: value for name, value in turn.items() if name != "weight"}
    return given | dict.fromkeys(REASONING if REASONING[0] in turn else (), turn.get(REASONING[0]))


def parts_text(value: Any, where: str) -> Any:
    """The text of a content that comes in parts; any other content as it is."""
    if not isinstance(value, list):
        return value
    return "".join(_part(part, where) for part in value)


def turn_of(turn: Mapping[str, Any], where: str) -> Turn:
    """A turn as chat templates are given it. Nothing that is not rendered may be said: dropped, it
    would change what is learned."""
    role = string(turn.get("role"), "role", where)
    role = "system" if role == "developer" else role  # OpenAI's new name
    allowed = (*_EVERY, *OF_ROLE.get(role, ()))
    for name, value in turn.items():
        if name not in allowed and not is_empty(value):
            raise InputError(
                f"{where}: {name!r} is not rendered in a turn of role {role!r}; allowed are "
                f"{', '.join(allowed)}"
            )
    more = _of_assistant(turn, where) if role == "assistant" else _texts(turn, role, where)
    content = parts_text(turn.get("content"), where)
    if content is None and "tool_calls" in more:
        content = ""
    return {"role": role, "content": string(content, "content", where), **more}


def _of_assistant(turn: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    reasoning = {string(turn[name], name, where) for name in REASONING if turn.get(name)}
    if len(reasoning) > 1:
        raise InputError(f"{where}: {' and '.join(REASONING)} are one; give one of them")
    if reasoning:
        found["reasoning_content"] = reasoning.pop()
    if calls := tool_calls(turn.get("tool_calls"), where):
        found["tool_calls"] = calls
    if turn.get("weight") is not None:
        found["weight"] = _weight(turn["weight"], where)
    return found


def _texts(turn: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    fields = OF_ROLE.get(role, ())
    return {name: string(turn[name], name, where) for name in fields if turn.get(name)}


def _weight(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{where}: weight must be a number from 0 to 1, not {value!r}")
    return value


def _part(part: Any, where: str) -> str:
    said = {n: v for n, v in part.items() if not is_empty(v)} if isinstance(part, Mapping) else {}
    if said.keys() - {"text"} != {"type"} or said["type"] != "text":
        kind = said.get("type", part)
        raise InputError(f"{where}: content has a part of type {kind!r}; allowed is text")
    return string(said.get("text", ""), "content", where)
