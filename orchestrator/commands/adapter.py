"""`moetune adapter …`: adapters on disk, without a cluster."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from orchestrator.commands.options import AsJson, print_json, print_table

app = typer.Typer(no_args_is_help=True)
_LINE = 56


@app.command()
def inspect(folder: Path, as_json: AsJson = False) -> None:
    """Show what an adapter folder holds, a line each; whole with --json."""
    from workers.adapter.files import inspect as inspect_folder

    facts = inspect_folder(folder)
    if as_json:
        return print_json(facts)
    return print_table(("field", "value"), [(name, _brief(fact)) for name, fact in facts.items()])


@app.command("import")
def import_(
    folder: Path,
    to: Annotated[Path, typer.Option(help="New folder for the adapter.")],
    base: Annotated[
        str | None, typer.Option(help="Base model, to check that the adapter fits it.")
    ] = None,
) -> None:
    """Read an adapter of MixLoRA, MoELoRA or PEFT (safetensors or .bin) into our format."""
    from workers.adapter.convert import import_folder
    from workers.model import load_base
    from workers.spec import ModelSpec

    import_folder(folder, to, load_base(ModelSpec(path=base)).model if base else None)
    print(f"imported {folder} into {to}")


@app.command()
def export(
    folder: Path,
    to: Annotated[Path, typer.Option(help="New folder for the adapter.")],
    format_: Annotated[
        Literal["mixlora", "moelora", "peft"] | None,
        typer.Option("--format", help="Whose; left out: by the adapter's shape."),
    ] = None,
    bin_: Annotated[bool, typer.Option("--bin", help="Write .bin instead of safetensors.")] = False,
) -> None:
    """Write an adapter in the format of MixLoRA, MoELoRA or PEFT."""
    from workers.adapter.convert import export_folder

    export_folder(folder, to, format_, as_bin=bin_)
    print(f"exported {folder} to {to}")


def _brief(fact: Any) -> Any:
    """Its beginning, where it is long: a training's specification, loads of every layer."""
    shown = str(fact)
    return fact if len(shown) <= _LINE else f"{shown[: _LINE - 1]}…"
