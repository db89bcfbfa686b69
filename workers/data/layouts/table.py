"""The layouts that people have their rows in, and what is made of each: a prompt with a target, or
a chat. A layout is known by its columns, where the job names none of its own.

To read one more, enter it in `LAYOUTS`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.config.base import InputError
from workers.data.tools import json_value
from workers.data.values import is_empty, string, text, texts, unpacked

Made = dict[str, Any]
"""`prompt` and `target`, or `messages`."""


@dataclass(frozen=True)
class RowLayout:
    """One way to lay out rows."""

    name: str
    """What people call it."""
    needs: Sequence[str]
    """Columns that tell it."""
    made: Callable[[Mapping[str, Any], str], Made]
    """A row out of a record; InputError with the place that is given."""
    may_have: Sequence[str] = ()
    """Columns that are read where they are there."""

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.needs)})"


def layout_of(names: Collection[str], where: str) -> RowLayout | None:
    """The layout with such columns; None where no known one has them. InputError for those of
    two."""
    fitting = [one for one in LAYOUTS if set(one.needs) <= set(names)]
    if len(fitting) > 1:
        raise InputError(
            f"{where}: has the columns of {' and of '.join(map(str, fitting))}; name those to read "
            "by data.prompt_columns and data.target_column, or by data.messages_column"
        )
    return fitting[0] if fitting else None


def _alpaca(record: Mapping[str, Any], where: str) -> Made:
    asked = [_text(record, name, where) for name in ("instruction", "input")]
    prompt, target = "\n".join(filter(None, asked)), _text(record, "output", where)
    before = [*_system(record, where), *_history(record, where)]
    if not before:
        return {"prompt": prompt, "target": target}
    turns = (_turn("user", prompt), _turn("assistant", target))
    return {"messages": [*before, *turns]}


def _history(record: Mapping[str, Any], where: str) -> list[Made]:
    pairs = unpacked(record.get("history")) or []
    if not isinstance(pairs, list):
        raise InputError(f"{where}: column 'history' must hold a list of pairs of texts")
    turns = []
    for at, pair in enumerate(pairs, 1):
        said = texts(pair, f"column 'history', pair {at},", where)
        if len(said) != 2:
            raise InputError(f"{where}: column 'history', pair {at}, must hold two texts")
        turns += [_turn("user", said[0]), _turn("assistant", said[1])]
    return turns


def _sharegpt(record: Mapping[str, Any], where: str) -> Made:
    said = unpacked(record.get("conversations"))
    if not isinstance(said, list) or not all(isinstance(turn, Mapping) for turn in said):
        raise InputError(f"{where}: conversations must be a list of turns with from and value")
    turns = [_of_sharegpt(turn, f"{where}: turn {at}") for at, turn in enumerate(said, 1)]
    system = _system(record, where)
    if system and turns and turns[0].get("role") == "system":
        raise InputError(f"{where}: has a column 'system' and a system turn; leave one of them out")
    return {"messages": [*system, *turns]}


def _of_sharegpt(turn: Mapping[str, Any], where: str) -> Made:
    """A turn with its role as everybody calls it. What else it says is a chat's to judge."""
    if is_empty(turn.get("from")):
        return dict(turn)
    role, rest = turn["from"], {n: v for n, v in turn.items() if n not in ("from", "value")}
    if not isinstance(role, str) or role not in _ROLES:
        raise InputError(f"{where}: from is {role!r}, but must be one of {', '.join(_ROLES)}")
    made = _said(role, string(turn.get("value"), "value", where), where)
    if twice := [name for name in made if not is_empty(rest.get(name))]:
        raise InputError(f"{where}: has from, value and {twice[0]!r}; leave one of them out")
    return rest | made


def _said(role: str, content: str, where: str) -> Made:
    if role != _CALL:
        return _turn(_ROLES[role], content)
    calls = json_value(content, "value of a function_call", where)
    return _turn("assistant", "") | {"tool_calls": calls if isinstance(calls, list) else [calls]}


def _completion(record: Mapping[str, Any], where: str) -> Made:
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return {"messages": [*prompt, *completion]}
    said = (text(record.get(name), f"column {name!r}", where) for name in ("prompt", "completion"))
    return dict(zip(("prompt", "target"), said, strict=True))


def _system(record: Mapping[str, Any], where: str) -> list[Made]:
    system = _text(record, "system", where)
    return [_turn("system", system)] if system else []


def _turn(role: str, content: str) -> Made:
    return {"role": role, "content": content}


def _text(record: Mapping[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    return "" if value is None else text(value, f"column {name!r}", where)


_CALL = "function_call"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    _CALL: "assistant",
}
"""ShareGPT's, as ShareGPT, FastChat, axolotl and LLaMA-Factory write them."""
LAYOUTS = (
    RowLayout("Alpaca", ("instruction", "output"), _alpaca, ("input", "system", "history")),
    RowLayout("ShareGPT", ("conversations",), _sharegpt, ("system",)),
    RowLayout("prompts and completions", ("prompt", "completion"), _completion),
)
