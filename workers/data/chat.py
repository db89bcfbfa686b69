"""A chat out of a record: its turns up to the answer, and the answer."""

from collections.abc import Mapping
from typing import Any

from workers.config.base import InputError
from workers.data.values import is_empty, string

FIELDS = ("role", "content")
TOOLS = ("tools", "functions")
"""Columns that a chat template would render, and that are not rendered yet."""
NO_TOOLS = ("[]", "{}", "null")
"""How columns of JSON text say that there are none."""

Turn = Mapping[str, str]


def chat(value: Any, where: str) -> tuple[tuple[Turn, ...], str]:
    """The turns before the last assistant turn, and its text."""
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise InputError(f"{where}: messages must be a list of turns with role and content")
    turns = tuple(_turn(turn, f"{where}: turn {at}") for at, turn in enumerate(value, 1))
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    if last == 0:
        raise InputError(f"{where}: messages need an assistant turn, and one before it")
    return turns[:last], turns[last]["content"]


def check_tools(record: Mapping[str, Any], where: str) -> None:
    """Refuse tools beside a row: without them another prompt is learned than is served."""
    for name in TOOLS:
        value = record.get(name)
        if value not in NO_TOOLS and not is_empty(value):
            raise InputError(f"{where}: column {name!r} is not rendered yet; leave it out or empty")


def _turn(turn: Mapping[str, Any], where: str) -> Turn:
    """Role and content. Nothing else may be said: dropped, it would change what is learned."""
    for name, value in turn.items():
        if name not in FIELDS and not is_empty(value):
            raise InputError(
                f"{where}: {name!r} is not rendered yet; allowed are {' and '.join(FIELDS)}"
            )
    return {name: string(turn.get(name), name, where) for name in FIELDS}
