"""A job's rows joined with fresh ones."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.job import JobSpec, override_job
from workers.config.base import InputError
from workers.data.source import records
from workers.run.files import write_text

HELD_OUT = 5
"""One fresh row of so many is for validation."""


def with_fresh(job: JobSpec, source: str, fewest: int, folder: Path) -> JobSpec:
    """The job on files in `folder` that hold its own rows and those of `source`, fresh rows first:
    `data.max_rows` takes the first ones. InputError where there are fewer than `fewest` of them,
    or a file cannot be read.

    What is compared, on the validation rows, then covers old and fresh traffic alike.
    """
    fresh = [record for _, record in records(source, _all)]
    if len(fresh) < fewest:
        raise InputError(f"{source}: holds {len(fresh)} rows, but min_rows is {fewest}")
    parts = {
        "train": [row for at, row in enumerate(fresh) if (at + 1) % HELD_OUT],
        "validation": fresh[HELD_OUT - 1 :: HELD_OUT],
    }
    folder.mkdir(parents=True, exist_ok=True)
    changes = {}
    for name, rows in parts.items():
        own = (record for _, record in records(getattr(job.train.data, name), _all))
        path = folder / f"{name}.jsonl"
        _write(path, rows, own)
        changes[f"data.{name}"] = str(path)
    return override_job(job, changes, f"job {job.name}")


def _all(_: str, names: Collection[str]) -> Sequence[str]:
    return list(names)


def _write(path: Path, *parts: Iterable[Mapping[str, Any]]) -> None:
    lines = [json.dumps(dict(record), default=_no_text) for part in parts for record in part]
    write_text(path, "".join(line + "\n" for line in lines), durable=True)


def _no_text(value: object) -> list[str]:
    """What JSON has no like of, dates or bytes, as a list: refused wherever text is wanted, as it
    is in the file that it comes from."""
    return [str(value)]
