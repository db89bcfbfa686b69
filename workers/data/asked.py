"""What a record asks, and the answer to it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.chat import Turn, chat, weight
from workers.data.tools import tool_schemas
from workers.data.values import text, unpacked

TOOLS = ("tools", "functions")
"""Columns with what the assistant may call. The second is an old form, which is refused."""


class Asked(NamedTuple):
    """A chat up to the answer, the answer, and what may be called in it."""

    turns: tuple[Turn, ...]
    answer: Turn
    tools: tuple[Mapping[str, Any], ...]


def asked_in(spec: DataSpec, where: str, record: Mapping[str, Any]) -> Asked:
    """Out of a chat, or of columns with prompt and target. InputError where nothing is learned of
    it, or what is learned cannot be rendered."""
    if spec.messages_column in record:
        asked = Asked(*chat(unpacked(record[spec.messages_column]), where), _tools(record, where))
    else:
        asked = _of_columns(spec, where, record)
    if not _learned(spec, asked):
        last = "its last answer weighs" if spec.loss_on == "last" else "all its answers weigh"
        raise InputError(f"{where}: {last} 0, so nothing of it is learned")
    if spec.template == "plain" and (asked.tools or _more_than_text(asked)):
        raise InputError(f"{where}: tools, calls and reasoning want data.template: chat")
    return asked


def _of_columns(spec: DataSpec, where: str, record: Mapping[str, Any]) -> Asked:
    columns = (*spec.prompt_columns, spec.target_column)
    tools = _tools({name: record[name] for name in record.keys() - set(columns)}, where)
    *prompt, target = (text(record.get(name), f"column {name!r}", where) for name in columns)
    question = {"role": "user", "content": "\n".join(prompt)}
    return Asked((question,), {"role": "assistant", "content": target}, tools)


def _tools(record: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    if tool_schemas(record.get("functions"), where):
        raise InputError(f"{where}: column 'functions' is not rendered; write it as 'tools'")
    return tool_schemas(record.get("tools"), where)


def _learned(spec: DataSpec, asked: Asked) -> bool:
    """Whether anything of it has a weight."""
    spoken = [turn for turn in asked.turns if turn["role"] == "assistant"]
    return any(map(weight, (asked.answer, *(spoken if spec.loss_on == "all" else ()))))


def _more_than_text(asked: Asked) -> bool:
    plain = {"role", "content", "weight"}
    return any(turn.keys() - plain for turn in (*asked.turns, asked.answer))
