"""Values of a record as text; what is none is refused, with its file and row."""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from reprlib import repr as short
from typing import Any

from workers.config.base import InputError


def text(value: Any, what: str, where: str) -> str:
    """A string, or a number that is written in one way only, as text.

    3.0 is none: it was 3 before a missing value made its column one of floats. Nor are NaN, and
    numbers whose text is not known, such as 0.1 out of 32 bits, which has 17 digits.
    """
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value:f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        if value.is_integer() or float(f"{value:.15g}") != value:
            raise InputError(f"{where}: {what} must hold text, not {value}; write it as text")
        return str(value)
    return string(value, what, where)


def string(value: Any, what: str, where: str) -> str:
    """A string that every tokenizer takes; a number is none."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} must hold text, not {short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: {what} holds half a character (a lone surrogate): {short(value)}"
        ) from None
    return value


def texts(value: Any, what: str, where: str) -> tuple[str, ...]:
    """A list of texts, or one as JSON text; none where there is no value."""
    value = unpacked(value)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InputError(f"{where}: {what} must hold a list, not {short(value)}")
    return tuple(text(item, f"{what}, item {at},", where) for at, item in enumerate(value, 1))


def unpacked(value: Any) -> Any:
    """What a text says as JSON, where a list is wanted: a cell of CSV holds nothing else. An empty
    text says nothing; one that is no JSON stays, and so does one that names a field twice."""
    if not isinstance(value, str):
        return value
    with suppress(ValueError, RecursionError):
        return DECODER.decode(value) if value.strip() else None
    return value


def is_empty(value: Any) -> bool:
    """Whether nothing is said: null, no text, or a collection of such. Parquet fills fields that a
    row lacks with them."""
    left = [value]  # not by recursion: a file may nest as deep as JSON's reader goes
    while left:
        item = left.pop()
        if isinstance(item, Mapping):
            left += item.values()
        elif isinstance(item, list):
            left += item
        elif item is not None and item != "":
            return False
    return True


def repeated(names: Iterable[str]) -> str | None:
    """The first name that has come before; None where each comes once."""
    seen = set[str]()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields, none of them twice: JSON would keep the last."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"{repeated(name for name, _ in pairs)!r} is there twice")
    return record


DECODER = json.JSONDecoder(object_pairs_hook=once)
"""Of JSON that anybody wrote."""
