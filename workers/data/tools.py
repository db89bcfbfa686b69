"""Tools and calls of them, as chat templates take them: plain values, arguments as objects."""

import json
import math
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any

from workers.config.base import InputError
from workers.data.values import DECODER, is_empty, string

DEEPEST = 64
"""Objects and lists inside one another, at most."""
_NONE = ("[]", "{}", "null")
"""How columns of JSON text say that there are none."""


def tool_schemas(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """OpenAI's `tools`: a list, or JSON text of it. A function that stands alone is wrapped.
    Fields that are null are left out in every form: a row and a request then show the same."""
    if is_empty(value) or value in _NONE:
        return ()
    found = json_value(value, "tools", where) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise InputError(f"{where}: tools must be a list of functions, or its JSON text")
    return tuple(_schema(one, f"{where}: tool {at}") for at, one in enumerate(found, 1))


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """OpenAI's `tool_calls` of an assistant's turn."""
    if is_empty(value):
        return []
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise InputError(f"{where}: tool_calls must be a list of calls")
    return [_call(one, f"{where}: call {at}") for at, one in enumerate(value, 1)]


def calls_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls in a few words, for people; a model writes them as its template does."""
    return "\n".join(json.dumps(one["function"], ensure_ascii=False) for one in calls)


def json_value(text: str, what: str, where: str) -> Any:
    """What a JSON text holds."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):  # also of a field that is there twice
        raise InputError(f"{where}: {what} must be JSON, not {short(text)}") from None


def plain(value: Any, what: str, where: str, *, nulls: bool = False, depth: int = 0) -> Any:
    """A value of JSON, without fields that are null unless `nulls` are meant: Parquet gives each
    object all fields that any has."""
    if depth > DEEPEST:
        raise InputError(f"{where}: {what} is nested deeper than {DEEPEST}")

    def inner(one: Any) -> Any:
        return plain(one, what, where, nulls=nulls, depth=depth + 1)

    if isinstance(value, Mapping):
        said = ((name, one) for name, one in value.items() if nulls or one is not None)
        return {string(name, what, where): inner(one) for name, one in said}
    if isinstance(value, list | tuple):
        return [inner(one) for one in value]
    if isinstance(value, str):
        return string(value, what, where)
    if (
        value is None
        or isinstance(value, int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    raise InputError(f"{where}: {what} must hold values of JSON, not {short(value)}")


def _schema(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = plain(tool, "tools", where)
    kind = found.pop("type", None) or "function"
    if kind != "function":
        raise InputError(f"{where}: type must be function, not {short(kind)}")
    wrapped = found if "function" in found else {"function": found}
    _named(wrapped["function"], where)
    return {"type": "function", **wrapped}


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    """With its arguments as an object: templates write it as JSON themselves."""
    said = {name: one for name, one in call.items() if one is not None}
    function = said.pop("function", None) or {
        n: said.pop(n) for n in ("name", "arguments") if n in said
    }
    _named(function, where)
    extra = [*(said.keys() - {"id", "type", "index"}), *(function.keys() - {"name", "arguments"})]
    if unknown := [name for name in sorted(extra) if not is_empty({**said, **function}[name])]:
        raise InputError(f"{where}: {unknown[0]!r} is not rendered")
    if said.get("type", "function") != "function":
        raise InputError(f"{where}: type must be function, not {short(said['type'])}")
    number = {"id": string(said["id"], "id", where)} if said.get("id") else {}
    known = {"name": function["name"], "arguments": arguments(function.get("arguments"), where)}
    return {**number, "type": "function", "function": known}


def arguments(value: Any, where: str) -> dict[str, Any]:
    """A call's, out of an object or its JSON text."""
    value = value.strip() if isinstance(value, str) else value
    text = isinstance(value, str) and value
    found = json_value(value, "arguments", where) if text else (value or {})
    if not isinstance(found, Mapping):
        raise InputError(f"{where}: arguments must be an object, or its JSON text")
    made: dict[str, Any] = plain(found, "arguments", where, nulls=bool(text))
    return made


def _named(function: Any, where: str) -> None:
    if not isinstance(function, Mapping):
        raise InputError(f"{where}: needs a function")
    if not string(function.get("name"), "name", where):
        raise InputError(f"{where}: its function has no name")
