"""`moetune leaderboard`, and the table that `tune` and `train` end with."""

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    Storage,
    Store,
    StudyName,
    cluster_spec,
)
from orchestrator.output import print_json, print_table

if TYPE_CHECKING:
    from orchestrator.tuning.study import Study, TrialRow

app = typer.Typer()


@app.command()
def leaderboard(
    study: StudyName,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Rank a study's trials."""
    from orchestrator.tuning.lifecycle import resume_command
    from orchestrator.tuning.study import Study

    place = cluster_spec(storage, store)
    record = Study.open(place, study)
    again = resume_command(record, place)
    show_leaderboard(record, as_json, interrupted=again is not None)
    if again and not as_json:
        print(f"interrupted; go on with: {again}")


def show_leaderboard(study: "Study", as_json: bool, interrupted: bool = False) -> None:
    """Print it; of a study that was cut off, trials that would run are called interrupted."""
    from orchestrator.monitoring.format import plain
    from orchestrator.registry.exportable import told

    rows = study.leaderboard()
    if interrupted:
        alive = ("running", "waiting")
        rows = [replace(row, state="interrupted") if row.state in alive else row for row in rows]
    export = study.exportable(rows)
    if as_json:
        known = {number: one.as_dict() for number, one in export.items() if one}
        return print_json([row.as_dict() | {"export": known.get(row.number)} for row in rows])
    varied = sorted({path for row in rows for path in row.params})
    fields = [path.rpartition(".")[2] for path in varied]
    print_table(
        ("trial", "state", study.metric, *fields, "steps", "seconds", "version", "why"),
        [
            (row.number, row.state, row.value, *map(row.params.get, varied), *_end(row))
            for row in rows
        ],
        title=f"study {study.name}",
    )
    for line in told(export.items()):
        print(plain(line))
    return None


def _end(row: "TrialRow") -> tuple[object, ...]:
    return row.steps, row.seconds, row.version, row.remark
