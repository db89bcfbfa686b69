"""One line of a JSON Lines file, from anywhere: the object in it, or one line on what is wrong."""

import json
from typing import Any

from workers.config.base import InputError, one_line
from workers.data.values import repeated


def json_record(line: bytes, where: str) -> dict[str, Any]:
    """The object in a line."""
    try:  # a mark of the byte order may lead each of joined files
        record = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise InputError(f"{where}: is no UTF-8") from None
    except RecursionError:
        raise InputError(f"{where}: is no JSON that can be read: it nests too deep") from None
    except ValueError as error:  # also what Python says of a number of thousands of digits
        reason = getattr(error, "msg", one_line(error).partition("; use sys.")[0])
        raise InputError(f"{where}: is no JSON: {reason}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: must be a JSON object")
    return record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields, none of them twice: JSON would keep the last."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"{repeated(name for name, _ in pairs)!r} is there twice")
    return record
