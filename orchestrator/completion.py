"""What the shell offers on TAB. It reads files only and makes none; where there is nothing to be
found, or a server would have to be asked, it offers nothing."""

import os
from pathlib import Path
from typing import Any

import typer

_JOB_FILES = (".yaml", ".yml")


def jobs(incomplete: str) -> list[str]:
    """Jobs that come with moetune, and job files and folders here."""
    ours = sorted(one.stem for one in (Path(__file__).parent / "jobs").glob("*.yaml"))
    folder = incomplete[: incomplete.rfind("/") + 1]
    there = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    files = [f"{folder}{one.name}" for one in there if one.suffix in _JOB_FILES]
    return [*ours, *files, *(f"{folder}{one.name}/" for one in there if one.is_dir())]


def fields() -> list[str]:
    """Fields of a job for --set, as in `adapter.rank=`."""
    from orchestrator.config.job import JobSpec
    from workers.config.json_schema import fields as every
    from workers.config.json_schema import json_schema

    paths = [one.path for one in every(json_schema(JobSpec)) if one.section is None]
    return [f"{path.removeprefix('train.')}=" for path in paths]


def endpoint_fields() -> list[str]:
    """Fields of an endpoint for `serve --set`, as in `port=`."""
    return [one.removeprefix("serve.") for one in fields() if one.startswith("serve.")]


def studies(context: typer.Context) -> list[str]:
    """Studies in the storage folder."""
    folder = Path(_given(context).get("storage", "runs")) / "studies"
    return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []


def names(context: typer.Context) -> list[str]:
    """Names that something was promoted to, where the store is a SQLite file."""
    from orchestrator.config.cluster import ClusterSpec
    from orchestrator.tuning.storage import database_file
    from workers.config.base import InputError, validated

    try:
        file = database_file(validated(ClusterSpec, _given(context), "options"))
    except InputError:
        return []
    return _promoted(file) if file and file.is_file() else []


def studies_and_names(context: typer.Context) -> list[str]:
    """Both, for a command that takes either."""
    return [*studies(context), *names(context)]


def _given(context: typer.Context) -> dict[str, str]:
    """Where studies and versions lie, as far as the command line or the environment says."""
    asked = {key: context.params.get(key) for key in ("storage", "store")}
    asked["storage"] = asked["storage"] or os.environ.get("MOETUNE_STORAGE")
    return {key: value for key, value in asked.items() if value}


def _promoted(file: Path) -> list[str]:
    import sqlalchemy as sa

    from orchestrator.registry.store import names_query

    query: dict[str, Any] = {"mode": "ro", "uri": "true"}
    url = sa.URL.create("sqlite", database=f"file:{file.resolve()}", query=query)
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return [*connection.execute(names_query()).scalars()]
    except sa.exc.SQLAlchemyError:  # no registry in it yet, or a writer holds it
        return []
    finally:
        engine.dispose()
