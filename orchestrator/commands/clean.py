"""`moetune clean`: what takes how much disk, and what of it may go."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.commands.options import DEFAULT_STORAGE, AsJson, Storage, Store, cluster_spec
from orchestrator.monitoring.format import size
from orchestrator.output import print_json, print_table

if TYPE_CHECKING:
    from orchestrator.disk.use import Use

app = typer.Typer()


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Delete what may go.")] = False,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished",
            help="Also what --resume would go on from: it begins cut-off trials anew then.",
        ),
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Show what takes how much disk, and what may go: nothing that a name, a version or a running
    study needs, nor --resume. Deletes nothing without --yes."""
    from orchestrator.disk.survey import clean as delete
    from orchestrator.disk.survey import survey
    from orchestrator.disk.use import measured

    place = cluster_spec(storage, store)
    used = measured(survey(place, unfinished))
    if yes:
        delete(place, unfinished)
    if as_json:
        return print_json(_facts(used, yes))
    mark = "gone" if yes else "may go"
    rows = [(use.item.what, size(use.bytes), _goes(use, mark), use.item.why) for use in used]
    print_table(("what", "size", "", "why"), rows)
    return print(_sum(used, yes))


def _goes(use: "Use", mark: str) -> str:
    return mark if use.item.goes else "stays"


def _may_go(used: "list[Use]") -> int:
    return sum(use.bytes for use in used if use.item.goes)


def _sum(used: "list[Use]", gone: bool) -> str:
    free = _may_go(used)
    if gone:
        return f"freed {size(free)}"
    whole = f"{size(sum(use.bytes for use in used))} in all"
    return f"{whole}; {size(free)} may go, by --yes" if free else f"{whole}; all stays"


def _facts(used: "list[Use]", gone: bool) -> dict[str, Any]:
    whole = sum(use.bytes for use in used)
    items = [use.as_dict() for use in used]
    return {"bytes": whole, "may_go_bytes": _may_go(used), "deleted": gone, "items": items}
