"""A job's rows joined with fresh ones."""

import json
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator.config.job import JobSpec, override_job
from workers.config.base import InputError
from workers.config.data import DataSpec
from workers.config.sources import SourceSpec
from workers.data.layouts.recognition import Recognition
from workers.data.sources.records import records
from workers.run.files import write_text

HELD_OUT = 5
"""One fresh row of so many is for validation."""


def with_fresh(job: JobSpec, source: str, fewest: int, folder: Path) -> JobSpec:
    """The job on files in `folder` that hold its own rows and those of `source`, fresh rows first:
    `data.max_rows` takes the first ones. Several sources to learn from stay apart, with their
    weights, and fresh rows are one more. What is streamed stays where it is. InputError where there
    are fewer than `fewest` fresh rows, or a file cannot be read.

    What is compared, on the validation rows, then covers old and fresh traffic alike. Where they
    are held out of the rows to learn from, they still are: of all rows, and the old ones stay on
    their sides.
    """
    data, train, validation = job.train.data, folder / "train.jsonl", folder / "validation.jsonl"
    fresh = list(_records(data, source))
    if len(fresh) < fewest:
        raise InputError(f"{source}: holds {len(fresh)} rows, but min_rows is {fewest}")
    folder.mkdir(parents=True, exist_ok=True)
    changes: dict[str, Any] = {"data.train": str(train)}
    learned = fresh
    if isinstance(data.validation, str):
        learned = [row for at, row in enumerate(fresh) if (at + 1) % HELD_OUT]
        _write(validation, fresh[HELD_OUT - 1 :: HELD_OUT], _records(data, data.validation))
        changes["data.validation"] = str(validation)
    if data.streaming:
        _write(train, learned)
        changes["data.train"] = [str(train), *(one.model_dump() for one in data.sources)]
    elif isinstance(data.train, str):
        _write(train, learned, _records(data, data.train))
    else:
        _write(train, learned)
        own = (folder / f"train-{at}.jsonl" for at in range(1, len(data.train) + 1))
        copies = (_copied(data, one, path) for one, path in zip(data.train, own, strict=True))
        changes["data.train"] = [str(train), *copies]
    return override_job(job, changes, f"job {job.name}")


def _copied(data: DataSpec, one: SourceSpec, path: Path) -> dict[str, Any]:
    """One of several sources, with its weight, out of a file of its own."""
    _write(path, _records(data, one.source))
    return one.model_dump() | {"source": str(path)}


def _records(data: DataSpec, source: str) -> Iterator[Mapping[str, Any]]:
    """A source's records in the job's own columns: in one file they must have one layout."""
    known = Recognition(data)
    for where, record in records(source, known.columns):
        yield known.made(where, record)


def _write(path: Path, *parts: Iterable[Mapping[str, Any]]) -> None:
    lines = [json.dumps(dict(record), default=_no_text) for part in parts for record in part]
    write_text(path, "".join(line + "\n" for line in lines), durable=True)


def _no_text(value: object) -> str | list[str]:
    """What JSON has no like of. A decimal is the text that training takes it for; dates or bytes
    are a list: refused wherever text is wanted, as they are in the file that they come from."""
    if isinstance(value, Decimal) and value.is_finite():
        return f"{value:f}"
    return [str(value)]
