"""The sources that a space names, where trials may learn from different ones."""

from collections.abc import Callable, Mapping
from typing import Any

TRAINING_ROWS = "data.train"


def with_sources(space: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A search space with each of the sources that it names changed."""
    return {n: _sources(one, change) if n == TRAINING_ROWS else one for n, one in space.items()}


def _sources(value: Any, change: Callable[[str], str]) -> Any:
    """One, a list of them, or a range of such."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [_sources(one, change) for one in value]
    if isinstance(value, Mapping):
        names = ("source", "choice")
        return {n: _sources(one, change) if n in names else one for n, one in value.items()}
    return value
