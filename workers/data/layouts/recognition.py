"""Which columns of a source make its rows: those that the job names, or those of a known layout."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.asked import TOOLS
from workers.data.layouts.table import RowLayout, layout_of
from workers.data.sources.record import UnknownColumnsError

EXTRA_COLUMNS = ("id", "choices", "answer", "answer_index", "references")
"""Columns that are read where they are there."""
_OWN = ("prompt_columns", "target_column", "messages_column")
"""Fields of a job that say what its rows are made of."""


class Recognition:
    """Of one source, whose rows all have the layout of the first."""

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec
        self._named = any(getattr(spec, one) != DataSpec.model_fields[one].default for one in _OWN)
        self._layout: RowLayout | None = None
        self._first = ""
        self._chats = False

    @property
    def said(self) -> str:
        """The layout that was recognised; empty where the job's own columns are read."""
        if self._layout:
            return str(self._layout)
        return "OpenAI chats (messages)" if self._chats and not self._named else ""

    def columns(self, where: str, names: Collection[str]) -> Sequence[str]:
        """The columns to read out of those that there are. InputError where none are known, or
        where they are of another layout than those before."""
        needed = self._own(names)
        layout = None if needed or self._named else layout_of(names, where)
        if layout:
            needed = (*layout.needs, *(name for name in layout.may_have if name in names))
        if not needed:
            raise UnknownColumnsError(self._unknown(where, names))
        if self._first and layout is not self._layout:
            kinds = [str(one) if one else "the job's own columns" for one in (layout, self._layout)]
            raise InputError(
                f"{where}: is laid out as {kinds[0]}, but {self._first} as {kinds[1]}; make each "
                "a source of its own"
            )
        self._layout, self._first = layout, self._first or where
        spec = self._spec
        optional = (spec.task_column, spec.metric_column, *EXTRA_COLUMNS, *TOOLS)
        return list(dict.fromkeys((*needed, *(name for name in optional if name in names))))

    def made(self, where: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """A record as the job's own columns would have it."""
        if self._layout is None:
            return record
        kept = {n: v for n, v in record.items() if n not in self._layout.needs}
        return kept | self._layout.made(record, where)

    def _own(self, names: Collection[str]) -> Sequence[str]:
        """The job's own columns; none where one of them is not there."""
        spec = self._spec
        if spec.messages_column in names:
            self._chats = True
            return (spec.messages_column,)
        columns = (*spec.prompt_columns, spec.target_column)
        return columns if all(name in names for name in columns) else ()

    def _unknown(self, where: str, names: Collection[str]) -> str:
        spec = self._spec
        columns = (*spec.prompt_columns, spec.target_column)
        missing = ", ".join(repr(name) for name in columns if name not in names)
        return (
            f"{where}: no column {missing}; there are {', '.join(names)}; name yours by "
            "data.prompt_columns and data.target_column, or data.messages_column"
        )
