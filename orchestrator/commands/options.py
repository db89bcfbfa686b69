"""Options and output that several commands share."""

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.monitoring.format import plain

Job = Annotated[
    str, typer.Argument(metavar="JOB", help="Job file; or smoke, demo, llama8b_cluster.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a study that was cut off.")]
AcceptNewData = Annotated[
    bool,
    typer.Option(
        "--accept-new-data",
        help="Go on with a study whose rows have changed, as a new study (NAME-2).",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field, as in adapter.rank=16."),
]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="MOETUNE_ADDRESS",
        help="Cluster: its Ray or dashboard address. Left out: a local one.",
    ),
]
Storage = Annotated[
    str,
    typer.Option(envvar="MOETUNE_STORAGE", help="Folder with studies and adapter versions."),
]
JobStorage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="MOETUNE_STORAGE",
        help="Folder for studies and adapter versions, instead of the job's.",
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        help="SQLAlchemy URL without a password. Left out: that of MOETUNE_STORE, which may have "
        "one, or SQLite in the storage."
    ),
]
MovedBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="PATH",
        envvar="MOETUNE_BASE",
        help="Where the version's base model is now, if its folder was moved.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reason = Annotated[str | None, typer.Option(help="Why; kept in the name's history.")]

DEFAULT_STORAGE = "runs"


def print_json(value: Any) -> None:
    """Print one JSON document; times and paths as text."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print a table; on a terminal that is too narrow for it, each row as `column value · …`.
    Numbers have four digits, times end with the second."""
    columns, cells = [*map(plain, columns)], [[*map(_text, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if title:
        print(plain(title))
    if room and sum(widths) + 2 * (len(widths) - 1) > room:
        return print("\n".join(_record(columns, row, room) for row in cells))
    for row in (columns, *cells):
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return None


def _record(columns: Sequence[str], row: Sequence[str], room: int) -> str:
    said = " · ".join(f"{name} {cell}".strip() for name, cell in zip(columns, row, strict=True))
    return textwrap.fill(said, room, subsequent_indent="    ", break_on_hyphens=False)


def _text(value: Any) -> str:
    """One line, whatever it is: reasons and names are text of people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S %Z}".rstrip()
    return "-" if value is None else plain(str(value))


def plain_answer(text: str) -> str:
    """A model's text for the terminal, which must not obey it; for a pipe as it is."""
    return plain(text, kept="\n\t") if sys.stdout.isatty() else text


def job_spec(job: str, assignments: Sequence[str] | None, options: Mapping[str, str | None]) -> Any:
    """A job file's job with the options that name a part of its cluster (None: not given), and
    what --set assigns."""
    from orchestrator.config.job import load_job

    given = {f"cluster.{field}": value for field, value in options.items() if value is not None}
    return load_job(job, assignments or (), given)


def study_job(
    job: str, assignments: Sequence[str] | None, options: Mapping[str, str | None]
) -> Any:
    """`job_spec` of a job whose rows and model are needed: those of `smoke` are made."""
    from orchestrator.config.job import comes_along
    from orchestrator.demo.smoke import JOB, with_its_files

    spec = job_spec(job, assignments, options)
    return with_its_files(spec) if job == JOB and comes_along(job) else spec


def cluster_spec(storage: str, store: str | None, address: str | None = None) -> Any:
    """The part of a job that says where studies and versions lie; a missing folder is an error."""
    from orchestrator.config.cluster import ClusterSpec
    from workers.config.base import InputError, validated

    values = {"storage": storage, "store": store, "address": address}
    cluster = validated(ClusterSpec, values, "--store")
    if not cluster.named_store and not Path(storage).is_dir():
        raise InputError(f"--storage {storage}: no such folder; run `moetune tune` first")
    return cluster


def registry(storage: str, store: str | None) -> Any:
    """The registry of a storage folder."""
    from orchestrator.registry.registry import Registry

    spec = cluster_spec(storage, store)
    return Registry(spec.store_url(), Path(spec.storage).resolve())
