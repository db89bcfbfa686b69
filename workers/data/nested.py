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


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A value with all its texts changed, names of fields too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): with_texts(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(one, change) for one in value]
    return value
