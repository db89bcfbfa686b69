"""Records out of one JSON document, of which a few blocks are in memory at a time.

By Python's own parser, fed as it needs more: ijson puts ? for half a character, and takes the last
of two fields with one name.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from workers.config.base import InputError
from workers.data.sources.json_stream import JsonStream
from workers.data.sources.json_value import as_record, said_plainly
from workers.data.sources.record import Records, UnknownColumnsError, Wanted, picked
from workers.data.values import once

_HELD = 1000
"""Values of a list that are read before any is given: the columns by which the object is a row
itself may stand behind it."""


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
        """Itself, where its columns make a row, whatever lists it holds; else the rows of the one
        list of objects in it."""
        self._text.take("{", self._path)
        fields: list[tuple[str, Any]] = []
        begun = False
        while not self._text.took("}"):
            name = self._name(is_first=not fields)
            value, rest = self._value()
            fields.append((name, value))
            if rest and not self._is_row(dict(fields), number) and self._rows_in(dict(fields)):
                begun = True
                yield from self._rows(chain(value, rest))
            elif rest:
                value += rest
        record = said_plainly(lambda: once(fields), self._path)
        rows = None if self._is_row(record, number) else self._rows_in(record)
        if begun and rows is None:
            raise InputError(f"{self._path}: names the columns of a row behind a long list")
        if rows is None:
            yield picked(record, self._row(number), self._wanted)
        elif number > 1 or not self._text.ended():
            raise InputError(f"{self._path}: holds a list of rows, and more objects beside it")
        elif not begun:
            yield from self._rows(iter(rows))

    def _value(self) -> tuple[Any, Iterator[Any] | None]:
        """A field's value; of a long list of objects the beginning, and the rest."""
        if not self._text.starts("[", "{"):
            return self._text.value(self._path), None
        items = self._items()
        value = list(islice(items, _HELD))
        return value, items if len(value) == _HELD else None

    def _is_row(self, record: Mapping[str, Any], number: int) -> bool:
        try:
            self._wanted(self._row(number), record.keys())
        except UnknownColumnsError:
            return False
        return True

    def _rows_in(self, record: Mapping[str, Any]) -> list[Any] | None:
        """The one list of objects in what is no row; none where it has some of a row's columns."""
        lists = [name for name, value in record.items() if _holds_objects(value)]
        if len(lists) > 1:
            raise InputError(f"{self._path}: holds two lists, {lists[0]!r} and {lists[1]!r}")
        if not lists:
            return None
        rows: list[Any] = record[lists[0]]
        columns = self._wanted(self._row(1), rows[0].keys())
        return rows if self._is_row({n: 0 for n in columns if n not in record}, 1) else None

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


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
