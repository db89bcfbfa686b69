"""JSON out of a file of anybody: its value, or one line on what is wrong."""

from collections.abc import Callable
from typing import Any, TypeVar

from workers.config.base import InputError, one_line
from workers.data.values import DECODER

Value = TypeVar("Value")


def json_record(line: bytes, where: str) -> dict[str, Any]:
    """The object in a line."""
    try:  # a mark of the byte order may lead each of joined files
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: is no UTF-8") from None
    return as_record(said_plainly(lambda: DECODER.decode(text), where), where)


def as_record(value: Any, where: str) -> dict[str, Any]:
    """The value, which must be an object."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: must be a JSON object")
    return value


def said_plainly(parse: Callable[[], Value], where: str) -> Value:
    """What `parse` gives; InputError where that is no JSON."""
    try:
        return parse()
    except RecursionError:
        raise InputError(f"{where}: is no JSON that can be read: it nests too deep") from None
    except ValueError as error:  # also what Python says of a number of thousands of digits
        reason = getattr(error, "msg", one_line(error).partition("; use sys.")[0])
        raise InputError(f"{where}: is no JSON: {reason}") from None
