"""`moetune evaluate`: a version beside its bare base, and what versions were measured on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import completion
from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    Address,
    AsJson,
    MovedBase,
    Rows,
    Storage,
    Store,
    names_a_folder,
    registry,
)
from orchestrator.output import print_json, print_table

Place = tuple[str, str | None]
"""The storage and the store."""
Where = tuple[str | None, float]
"""The cluster, and GPUs for each of the two that are measured."""
app = typer.Typer()


@app.command()
def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER",
            help="NAME or NAME@VERSION; with --lm-eval also an adapter's folder.",
            autocompletion=completion.names,
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Rows that training never saw, as a job names them.")
    ] = None,
    rows: Rows = 50,
    lm_eval: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="Tasks of EleutherAI's lm-eval: a,b,c."),
    ] = None,
    tasks_folder: Annotated[
        Path | None, typer.Option(help="With --lm-eval: folder with further tasks, as YAML.")
    ] = None,
    run_task_code: Annotated[
        bool, typer.Option("--run-task-code", help="Let code in that folder run.")
    ] = False,
    shots: Annotated[
        int | None, typer.Option(min=0, help="With --lm-eval: examples before each question.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --lm-eval: so many rows of each task.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="With --lm-eval: rows of a forward pass.")
    ] = 8,
    chat: Annotated[
        bool, typer.Option("--chat", help="With --lm-eval: ask by the chat template.")
    ] = False,
    base: MovedBase = None,
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs for each of the two that are measured.")
    ] = 0,
    address: Address = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Compare a name with its bare base model: on further rows by task (--data), or on tasks of
    EleutherAI's lm-eval (--lm-eval).

    What was measured is kept with the version; without either option it is shown."""
    from workers.config.base import InputError

    place, where = (storage, store), (address, gpus)
    if data is not None and lm_eval is not None:
        raise InputError("--data and --lm-eval: take one of them at a time")
    if lm_eval is not None:
        asked = {
            "tasks": tuple(filter(None, map(str.strip, lm_eval.split(",")))),
            "tasks_folder": str(tasks_folder.resolve()) if tasks_folder else None,
            "run_task_code": run_task_code,
            "shots": shots,
            "limit": limit,
            "batch_size": batch_size,
            "chat": chat,
        }
        return _on_tasks(what, asked, base, where, place, as_json)
    if data is not None:
        return _on_rows(what, (data, rows), base, where, place, as_json)
    return _kept(what, place, as_json)


def _on_rows(
    name: str,
    asked: tuple[str, int],
    base: str | None,
    where: Where,
    place: Place,
    as_json: bool,
) -> None:
    from cluster.session import session
    from orchestrator.evaluation.compare import Measurement, compare_version

    (data, rows), (address, gpus), book = asked, where, registry(*place)
    measurement = Measurement.of(book, name, data, rows, base=base)
    with session(address):
        result = compare_version(measurement, gpus)
    if as_json:
        print_json(result.as_dict())
    else:
        print_table(result.columns(), result.rows())
    kept = {"data": data, "rows_per_task": rows}
    book.keep_evaluation(measurement.version, kept, result.as_dict())


def _on_tasks(
    what: str,
    asked: dict[str, Any],
    base: str | None,
    where: Where,
    place: Place,
    as_json: bool,
) -> None:
    from cluster.session import session
    from orchestrator.evaluation.harness import COLUMNS, HarnessRun, table

    if names_a_folder(what, *place):
        run = HarnessRun.of_folder(Path(what), asked, base)
    else:
        run = HarnessRun.of_name(registry(*place), what, asked, base)
    address, gpus = where
    with session(address):
        results = run.measure(gpus)
    if as_json:
        print_json(results)
    else:
        print_table((*COLUMNS, run.label), table(results))
    if run.version is not None:
        registry(*place).keep_evaluation(run.version, run.asked, results)


def _kept(what: str, place: Place, as_json: bool) -> None:
    from workers.config.base import InputError

    book = registry(*place)
    version = book.resolve(what)
    kept = book.evaluations(version)
    if not kept:
        raise InputError(
            f"{what}: version {version.id} was not measured yet; --data ROWS or --lm-eval TASKS "
            "measures it"
        )
    if as_json:
        return print_json([one.as_dict() for one in kept])
    rows = [(one.at, *row) for one in kept for row in one.rows()]
    return print_table(("at", "on", "of", "task", "metric", "value"), rows)
