"""Whether the metrics of tasks fit their rows: one that can score no answer is a mistake."""

import difflib
from collections.abc import Iterable

from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.data.rows import Row, training_rows, validation_rows
from workers.data.text_metrics import NEEDS, fits


def check_fits(rows: Iterable[Row]) -> None:
    """InputError where a metric could score none of a task's rows, with the first of them."""
    unfit, fit = dict[tuple[str, str], str](), set[tuple[str, str]]()
    for row in rows:
        which = row.task, row.metric
        if which not in fit:
            if fits(row.metric, row):
                fit.add(which)
            else:
                unfit.setdefault(which, row.where)
    for (task, metric), where in unfit.items():
        if (task, metric) not in fit:
            raise InputError(
                f"{where}: metric {metric} wants {NEEDS[metric].says}, but no row of task "
                f"{task!r} has any"
            )


def check_tasks(data: DataSpec) -> None:
    """InputError where `data.metrics` names a task that no row has; with a stream, none of those to
    be compared on."""
    named, tasks = set(data.metrics), set[str]()
    for rows in (validation_rows,) if data.streaming else (validation_rows, training_rows):
        if not named <= tasks:
            tasks |= {row.task for row in rows(data)}
    for task in data.metrics:
        if task not in tasks:
            close = difflib.get_close_matches(task, sorted(tasks), n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(tasks))}"
            raise InputError(f"data.metrics: no row is of task {task!r}; {hint}")
