"""Rows to learn from and to be scored on, as every later stage sees them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.config.row_metrics import check_metric
from workers.config.sources import SourceSpec
from workers.data.asked import asked_in
from workers.data.chat import Turn, weight
from workers.data.layouts.recognition import Recognition
from workers.data.sources.record import Records, Wanted
from workers.data.sources.records import records
from workers.data.split import is_held_out, row_key
from workers.data.text_metrics import CHOICE_METRICS
from workers.data.tools import calls_text
from workers.data.values import text, texts, unpacked

DEFAULT_METRIC = "exact_match"
"""Of a row for whose task nothing is said."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, its target, and how an answer to it is scored."""

    messages: tuple[Turn, ...]
    """The chat up to the answer."""
    target: str
    """Text to learn; of calls, what `answer_turn` calls."""
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
    source: int = 0
    """Which of several sources it is from, by its place in `data.train`."""
    answer_turn: Turn | None = None
    """The answer where it is more than the target's text: with calls or reasoning."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the assistant may call, as OpenAI's `tools`."""
    weight: float = 1.0
    """What the target's tokens count for."""
    layout: str = ""
    """The layout that its source was recognised by; empty where the job's own columns are read."""
    behind_reasoning: str = ""
    """What a model that reasons writes between that and its answer."""

    @property
    def calls(self) -> bool:
        """Whether it is answered by calls of tools."""
        return bool(self.answer_turn and self.answer_turn.get("tool_calls"))

    def scored(self, text: str) -> str:
        """What of a generated text is scored: the answer without the reasoning before it."""
        parted = self.behind_reasoning
        return text.rpartition(parted)[2].strip() if parted and parted in text else text

    @property
    def key(self) -> int:
        """What it is known by, wherever it comes."""
        return row_key(self.messages, self.target)

    @property
    def prompt(self) -> str:
        """The prompt as plain text: the turns' contents, one under the other."""
        return "\n".join(message["content"] for message in self.messages)


@dataclass(frozen=True, slots=True)
class UnreadRow:
    """A row that nobody has looked into: a stream that goes on in the middle skips many."""

    where: str
    read: Callable[[], Row]
    """InputError where it is wrong."""


def training_rows(spec: DataSpec) -> Iterator[Row]:
    """The rows to learn from, source after source, the first `max_rows` of each. They are read as
    they are taken."""
    rows = (
        replace(row, source=at) if at else row
        for at, one in enumerate(spec.sources)
        for row in islice(_side(spec, one, held_out=False), spec.max_rows)
    )
    return _some(spec, rows, "to learn from")


def validation_rows(spec: DataSpec, rows_per_task: int | None = None) -> Iterator[Row]:
    """The rows that trials are compared on, at most the first `rows_per_task` of each task. They
    are read as they are taken."""
    rows = chain.from_iterable(_side(spec, one, held_out=True) for one in spec.compared_on)
    return _some(spec, _first_of_each(rows, rows_per_task), "to compare on")


def read_rows(
    spec: DataSpec, source: str, limit: int | None = None, task: str | None = None
) -> list[Row]:
    """Read a source, whose rows are of `task` where they name none; InputError says which row is
    wrong, and how."""
    return list(islice(_rows(spec, source, task), limit))


def unread_rows(
    spec: DataSpec,
    source: str,
    task: str | None,
    read: Callable[[str, Wanted], Records] = records,
) -> Iterator[UnreadRow]:
    """Every row of a source, of `task` where it names none. InputError where there is none."""
    none = True
    known = Recognition(spec)
    for where, record in read(source, known.columns):
        none = False
        yield UnreadRow(where, partial(_known, spec, where, record, task, known))
    if none:
        raise InputError(f"{source}: holds no rows")


def _rows(spec: DataSpec, source: str, task: str | None) -> Iterator[Row]:
    return (row.read() for row in unread_rows(spec, source, task))


def _known(
    spec: DataSpec, where: str, record: Mapping[str, Any], task: str | None, known: Recognition
) -> Row:
    return _row(spec, where, known.made(where, record), task, known.said)


def _side(spec: DataSpec, one: SourceSpec, *, held_out: bool) -> Iterator[Row]:
    """A source's rows on one side of the split; all of them where there is none."""
    for row in _rows(spec, one.source, one.task):
        if not spec.held_out or is_held_out(row.key, spec.held_out) == held_out:
            yield row


def _first_of_each(rows: Iterable[Row], rows_per_task: int | None) -> Iterator[Row]:
    seen = dict[str, int]()
    for row in rows:
        seen[row.task] = seen.get(row.task, 0) + 1
        if rows_per_task is None or seen[row.task] <= rows_per_task:
            yield row


def _some(spec: DataSpec, rows: Iterable[Row], what: str) -> Iterator[Row]:
    none = True
    for row in rows:
        none = False
        yield row
    if none:
        raise InputError(
            f"data.validation: a share of {spec.held_out:g} leaves no row {what} of those in "
            f"{spec.train_name}; take another share, or validation rows of their own"
        )


def _row(
    spec: DataSpec, where: str, record: Mapping[str, Any], of_source: str | None, layout: str
) -> Row:
    asked = asked_in(spec, where, record)
    calls = calls_text(asked.answer.get("tool_calls", ()))
    target = "\n".join(filter(None, (asked.answer["content"], calls)))
    if not target.strip():
        raise InputError(f"{where}: its target is empty")
    task = _optional(record, spec.task_column, where) or of_source or "default"
    metric = _metric(spec, _optional(record, spec.metric_column, where), task, where)
    answer = _optional(record, "answer", where)
    answer = target if answer is None else answer
    choices, index = _choices(record, metric, answer, target, where)
    return Row(
        messages=asked.turns,
        target=target,
        task=task,
        metric=metric,
        answer=answer,
        references=_list(record, "references", where) or (answer,),
        choices=choices,
        answer_index=index,
        where=where,
        answer_turn=asked.answer if calls or "reasoning_content" in asked.answer else None,
        tools=asked.tools,
        weight=weight(asked.answer),
        layout=layout,
    )


def _metric(spec: DataSpec, said: str | None, task: str, where: str) -> str:
    """What the row says, or the job of its task. Two answers are a mistake in one of them."""
    of_job = spec.metrics.get(task)
    if not said:
        return of_job or DEFAULT_METRIC
    check_metric(said, where)
    if of_job not in (None, said):
        raise InputError(
            f"{where}: its metric is {said}, but data.metrics says {of_job} for task {task!r}; "
            "leave one of them out"
        )
    return said


def _optional(record: Mapping[str, Any], column: str, where: str) -> str | None:
    """What says nothing is not there: a cell of CSV is empty then."""
    value = record.get(column)
    return None if value in (None, "") else text(value, f"column {column!r}", where)


def _list(record: Mapping[str, Any], column: str, where: str) -> tuple[str, ...]:
    return texts(record.get(column), f"column {column!r}", where)


def _choices(
    record: Mapping[str, Any], metric: str, answer: str, target: str, where: str
) -> tuple[tuple[str, ...], int]:
    if metric not in CHOICE_METRICS:
        return (), -1
    choices = _list(record, "choices", where)
    if not all(choice.strip() for choice in choices):  # no token, so a likelihood that always wins
        raise InputError(f"{where}: one of its choices is empty")
    index = unpacked(record.get("answer_index"))
    if index is not None and type(index) is not int:  # a bool is an int to isinstance
        raise InputError(f"{where}: column 'answer_index' must hold a whole number, not {index!r}")
    if index is None or index < 0:
        index = next((i for i, one in enumerate(choices) if one in (answer, target)), -1)
    if not 0 <= index < len(choices):
        raise InputError(
            f"{where}: metric {metric} wants `choices` with the answer among them, or its "
            f"place in `answer_index`"
        )
    return choices, index
