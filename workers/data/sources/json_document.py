"""Records out of one JSON document, of which a few blocks are in memory at a time.

By Python's own parser, fed as it needs more: ijson puts ? for half a character, and takes the last
of two fields with one name.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from workers.config.base import InputError
from workers.data.sources.json_stream import JsonStream
from workers.data.sources.json_value import as_record, once, said_plainly
from workers.data.sources.record import Records, Wanted, picked

_OF_TURNS = ("role", "from")
"""Fields that a turn of a chat has and a row has not."""


class Document:
    """A list of objects, or an object that holds one such list; or objects that are rows, one
    behind the other."""

    def __init__(self, path: str, blocks: Iterable[bytes], wanted: Wanted) -> None:
        """`blocks` are its bytes."""
        self._path, self._wanted = path, wanted
        self._text = JsonStream(path, iter(blocks))

    def records(self) -> Records:
        """Every row."""
        text, number = self._text, 0
        if text.starts("["):
            yield from self._rows(self._items())
        while text.starts("{"):
            number += 1
            yield from self._object(number)
        if not text.ended():
            raise InputError(f"{self._path}: must hold a list of JSON objects, and nothing else")

    def _object(self, number: int) -> Records:
        """The rows of the one list of objects in it; or itself, where it is a row."""
        self._text.take("{", self._path)
        fields: list[tuple[str, Any]] = []
        lists: list[str] = []
        while not self._text.took("}"):
            name, value = self._name(is_first=not fields), None
            if not self._text.starts("[", "{"):
                value = self._text.value(self._path)
            elif _is_turn(first := next(items := self._items())):
                value = [first, *items]
            else:
                lists.append(name)
                if len(lists) > 1:
                    raise InputError(f"{self._path}: holds two lists, {lists[0]!r} and {name!r}")
                yield from self._rows(chain([first], items))
            fields.append((name, value))
        record = said_plainly(lambda: once(fields), self._path)
        if not lists:
            yield picked(record, self._row(number), self._wanted)
        elif number > 1 or not self._text.ended():
            raise InputError(f"{self._path}: holds a list {lists[0]!r}, and more objects beside it")

    def _items(self) -> Iterator[Any]:
        """The values of the list that begins here."""
        self._text.take("[", self._path)
        number = 0
        while not self._text.took("]"):
            number += 1
            where = self._row(number)
            if number > 1:
                self._text.take(",", where)
            yield self._text.value(where)

    def _rows(self, items: Iterator[Any]) -> Records:
        for number, item in enumerate(items, 1):
            where = self._row(number)
            yield picked(as_record(item, where), where, self._wanted)

    def _row(self, number: int) -> str:
        return f"{self._path}: row {number}"

    def _name(self, is_first: bool) -> str:
        if not is_first:
            self._text.take(",", self._path)
        name = self._text.value(self._path)
        if not isinstance(name, str):
            raise InputError(f"{self._path}: is no JSON: a field's name must be text")
        self._text.take(":", self._path)
        return name


def _is_turn(value: Any) -> bool:
    """Whether an object in a list is no row, but a turn of a chat."""
    return isinstance(value, dict) and any(name in value for name in _OF_TURNS)
