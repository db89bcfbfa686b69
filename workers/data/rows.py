"""Rows to learn from and to be scored on, as every later stage sees them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from workers.data.source import records
from workers.metrics import CHOICE_METRICS, check_metric
from workers.spec import DataSpec, InputError

EXTRA_COLUMNS = ("id", "choices", "answer", "answer_index", "references")
"""Columns that are read where they are there."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, its target, and how an answer to it is scored."""

    messages: tuple[Mapping[str, str], ...]
    """The chat up to the answer: `role` and `content` of each turn."""
    target: str
    """Text to learn."""
    task: str
    metric: str
    answer: str
    """The right answer, where it differs from the target (a calculation's result)."""
    references: tuple[str, ...]
    """Texts that are all right; at least the answer."""
    choices: tuple[str, ...]
    """Texts to choose from; empty for a metric of generated text."""
    answer_index: int
    """Which choice is right; -1 without choices."""
    where: str = ""
    """File and row, for messages."""

    @property
    def prompt(self) -> str:
        """The prompt as plain text: the turns' contents, one under the other."""
        return "\n".join(message["content"] for message in self.messages)


def training_rows(spec: DataSpec) -> list[Row]:
    """The rows to learn from, the first `max_rows` of them."""
    return read_rows(spec, spec.train, limit=spec.max_rows)


def validation_rows(spec: DataSpec, rows_per_task: int | None = None) -> list[Row]:
    """The rows that trials are compared on, at most the first `rows_per_task` of each task."""
    rows, seen = [], dict[str, int]()
    for row in read_rows(spec, spec.validation):
        seen[row.task] = seen.get(row.task, 0) + 1
        if rows_per_task is None or seen[row.task] <= rows_per_task:
            rows.append(row)
    return rows


def read_rows(spec: DataSpec, source: str, limit: int | None = None) -> list[Row]:
    """Read a source; InputError says which row is wrong, and how."""

    found = records(source, partial(_columns, spec))
    rows = [_row(spec, where, record) for where, record in islice(found, limit)]
    if not rows:
        raise InputError(f"{source}: holds no rows")
    return rows


def _columns(spec: DataSpec, where: str, names: Collection[str]) -> Sequence[str]:
    """The columns to read out of those that there are."""
    if spec.messages_column in names:
        needed: tuple[str, ...] = (spec.messages_column,)
    else:
        needed = (*spec.prompt_columns, spec.target_column)
    if missing := [name for name in needed if name not in names]:
        raise InputError(
            f"{where}: no column {', '.join(map(repr, missing))}; there are {', '.join(names)}"
        )
    optional = (spec.task_column, spec.metric_column, *EXTRA_COLUMNS)
    return list(dict.fromkeys((*needed, *(name for name in optional if name in names))))


def _row(spec: DataSpec, where: str, record: Mapping[str, Any]) -> Row:
    if spec.messages_column in record:
        messages, target = _chat(record[spec.messages_column], where)
    else:
        prompt = "\n".join(_text(record, name, where) for name in spec.prompt_columns)
        messages, target = (
            ({"role": "user", "content": prompt},),
            _text(record, spec.target_column, where),
        )
    if not target.strip():
        raise InputError(f"{where}: its target is empty")
    metric = str(record.get(spec.metric_column) or "exact_match")
    check_metric(metric, where)
    answer = record.get("answer")
    answer = str(answer) if isinstance(answer, str | int | float) else target
    choices, index = _choices(record, metric, answer, target, where)
    return Row(
        messages=messages,
        target=target,
        task=str(record.get(spec.task_column) or "default"),
        metric=metric,
        answer=answer,
        references=_texts(record, "references", where) or (answer,),
        choices=choices,
        answer_index=index,
        where=where,
    )


def _text(record: Mapping[str, Any], column: str, where: str) -> str:
    value = record.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: column {column!r} must hold text, not {value!r:.60}")
    return str(value)


def _texts(record: Mapping[str, Any], column: str, where: str) -> tuple[str, ...]:
    values = record.get(column) or []
    if not isinstance(values, list):
        raise InputError(f"{where}: column {column!r} must hold a list, not {values!r:.60}")
    return tuple(map(str, values))


def _chat(value: Any, where: str) -> tuple[tuple[Mapping[str, str], ...], str]:
    """The turns before the last assistant turn, and its text."""
    if not isinstance(value, list) or not all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in value
    ):
        raise InputError(f"{where}: messages must be a list of turns with role and content")
    last = max((i for i, turn in enumerate(value) if turn["role"] == "assistant"), default=0)
    if last == 0:
        raise InputError(f"{where}: messages need an assistant turn, and one before it")
    before = tuple({"role": turn["role"], "content": turn["content"]} for turn in value[:last])
    return before, value[last]["content"]


def _choices(
    record: Mapping[str, Any], metric: str, answer: str, target: str, where: str
) -> tuple[tuple[str, ...], int]:
    if metric not in CHOICE_METRICS:
        return (), -1
    choices = _texts(record, "choices", where)
    if not all(text.strip() for text in choices):  # no token, so a likelihood that always wins
        raise InputError(f"{where}: one of its choices is empty")
    index = record.get("answer_index")
    if index is not None and not isinstance(index, int):
        raise InputError(f"{where}: column 'answer_index' must hold a whole number, not {index!r}")
    if index is None or index < 0:
        index = next((i for i, text in enumerate(choices) if text in (answer, target)), -1)
    if not 0 <= index < len(choices):
        raise InputError(
            f"{where}: metric {metric} wants `choices` with the answer among them, or its "
            f"place in `answer_index`"
        )
    return choices, int(index)
