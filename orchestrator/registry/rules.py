"""What names, ids of versions and their metrics may be."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from workers.config.base import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
PREFIX = re.compile(r"[0-9a-f]{4,64}")
ID_LENGTH = 12
PLAIN = (str, int, float, type(None))
"""What a metric may be: what JSON has."""


def check_name(name: str, what: str) -> None:
    """Names become parts of URLs and log lines: letters, digits, `_`, `.` and `-` only."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{what} {name!r}: write 1 to 63 letters, digits, '_', '.' or '-', "
            "beginning with a letter or digit"
        )


def check_metrics(metrics: Mapping[str, Any], whose: str) -> None:
    """InputError where a metric is none that JSON has, or not finite."""
    for path, value in _leaves(metrics):
        if not isinstance(value, PLAIN) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{whose}: metric {path} is {value!r}")


def _leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _leaves(value, path)
    else:
        yield path, values
