"""Texts in values of JSON."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def texts_in(value: Any, *, names: bool = True) -> Iterator[str]:
    """All texts in a value; with `names`, those of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            if names:
                yield name
            yield from texts_in(one, names=names)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts_in(one, names=names)


def depths(value: Any, depth: int = 1) -> Iterator[int]:
    """How deep each of its values lies, itself at `depth`."""
    yield depth
    inside = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list | tuple):
        for one in inside:
            yield from depths(one, depth + 1)


def indented_length(value: Any, depth: int = 0) -> int:
    """About the characters that it has as JSON with four spaces for each level, as some chat
    templates write it. A text alone has its own."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        inside = sum(len(name) + indented_length(one, depth + 1) for name, one in value.items())
    elif isinstance(value, list | tuple):
        inside = sum(indented_length(one, depth + 1) for one in value)
    else:
        return len(str(value))
    return inside + 4 * (depth + 1) * (len(value) + 1)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A value with all its texts changed, names of fields too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): with_texts(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(one, change) for one in value]
    return value
