"""YAML from people and files: plain values, or one line on what is wrong."""

from collections.abc import Mapping
from typing import Any

import yaml

from workers.config.base import InputError

DEEPEST, MOST = 32, 100_000
"""Values inside one another, and in all: aliases (`*name`) can hold themselves, or multiply."""


def read_yaml(text: str | bytes, where: str) -> Any:
    """The values in a text, or in a file's bytes; InputError, which names `where`, for what is no
    YAML or has no end."""
    try:
        values = yaml.safe_load(text)
    except RecursionError:
        raise InputError(_too_deep(where)) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, say
        raise InputError(f"{where}: is no YAML: {' '.join(str(error).split())[:300]}") from None
    _check_size(values, where)
    return values


def _check_size(values: Any, where: str) -> None:
    level, seen = [values], 0
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
        seen += len(level)
        if seen > MOST:
            raise InputError(f"{where}: holds more than {MOST} values")
    if level:
        raise InputError(_too_deep(where))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value.values()]
    return value if isinstance(value, list) else []


def _too_deep(where: str) -> str:
    return f"{where}: nests more than {DEEPEST} levels deep, or an alias holds itself"
