"""Options and output that several commands share."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.words import plain

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
Store = Annotated[
    str | None,
    typer.Option(
        help="SQLAlchemy URL without a password. Left out: that of MOETUNE_STORE, which may have "
        "one, or SQLite in the storage."
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
    """Print a table that fits the terminal; numbers with four digits."""
    from rich.console import Console
    from rich.table import Table

    shown = [plain(column) for column in columns]
    table = Table(
        *shown, title=plain(title) or None, title_justify="left", box=None, pad_edge=False
    )
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else _text(v) for v in row))
    wide = None if sys.stdout.isatty() else 1000  # A pipe has no edge to wrap at.
    # Reasons and names are text of people, neither markup nor commands: "[/b]" stands as it is.
    Console(width=wide, markup=False, emoji=False).print(table)


def _text(value: Any) -> str:
    return "-" if value is None else plain(str(value))


def plain_answer(text: str) -> str:
    """A model's text for the terminal, which must not obey it; for a pipe as it is."""
    return plain(text, kept="\n\t") if sys.stdout.isatty() else text


def cluster_spec(storage: str, store: str | None) -> Any:
    """The part of a job that says where studies and versions lie; a missing folder is an error."""
    from orchestrator.cluster_spec import ClusterSpec
    from workers.configuration import InputError, validated

    cluster = validated(ClusterSpec, {"storage": storage, "store": store}, "--store")
    if not cluster.named_store and not Path(storage).is_dir():
        raise InputError(f"--storage {storage}: no such folder; run `moetune tune` first")
    return cluster


def registry(storage: str, store: str | None) -> Any:
    """The registry of a storage folder."""
    from orchestrator.registry import Registry

    spec = cluster_spec(storage, store)
    return Registry(spec.store_url(), Path(spec.storage).resolve())
