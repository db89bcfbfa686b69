"""`moetune adapter …`: adapters on disk, without a cluster."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from orchestrator.commands.options import AsJson
from orchestrator.output import print_json, print_table
from workers.config.routing import ROUTERS

app = typer.Typer(no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The adapter.")]
_LINE = 60
_SHAPE = ("experts", "num_experts", "routing", "rank", "alpha", "target_modules")
_NESTED = ("spec", "measured_with", "metrics", "base_metrics", "expert_load")


@app.command()
def inspect(folder: Folder, as_json: AsJson = False) -> None:
    """Show on one screen what an adapter folder holds; all of it with --json."""
    from workers.adapter.files import inspect as inspect_folder

    facts = inspect_folder(folder)
    if as_json:
        return print_json(facts)
    shown = [(name, _brief(fact)) for name, fact in _on_a_screen(facts).items()]
    return print_table(("field", "value"), shown)


@app.command("import")
def import_(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="New folder for the adapter.")],
    base: Annotated[
        str | None, typer.Option(help="Base model, to check that the adapter fits it.")
    ] = None,
) -> None:
    """Read an adapter of MixLoRA, MoELoRA or PEFT (safetensors or .bin) into our format."""
    from workers.adapter.convert import import_folder
    from workers.config.model import ModelSpec
    from workers.models.base import load_base

    import_folder(folder, to, load_base(ModelSpec(path=base)).model if base else None)
    print(f"imported {folder} into {to}")


@app.command()
def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="New folder for the adapter.")],
    format_: Annotated[
        Literal["mixlora", "moelora", "peft"] | None,
        typer.Option("--format", help="Whose; left out: by the adapter's shape."),
    ] = None,
    bin_: Annotated[bool, typer.Option("--bin", help="Write .bin instead of safetensors.")] = False,
) -> None:
    """Write an adapter in the format of MixLoRA, MoELoRA or PEFT.

    For a whole model, which vLLM, SGLang and llama.cpp run as it is: moetune export."""
    from workers.adapter.convert import export_folder

    export_folder(folder, to, format_, as_bin=bin_)
    print(f"exported {folder} to {to}")


def _on_a_screen(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not set, options at their defaults, and, but for the losses and where it was
    brought in from, nested ones."""
    from workers.config.adapter import AdapterSpec
    from workers.config.metrics import VALIDATION_LOSS, value_at

    shape = {*_SHAPE, *ROUTERS[facts["routing"]].fields}
    defaults = {name: field.default for name, field in AdapterSpec.model_fields.items()}
    told = {
        "origin": (facts.get("origin") or {}).get("path"),
        "loss": value_at(facts.get("metrics", {}), VALIDATION_LOSS),
        "base_loss": value_at(facts.get("base_metrics", {}), VALIDATION_LOSS),
    }
    return {
        name: fact
        for name, fact in {**facts, **told}.items()
        if name not in _NESTED
        and fact not in (None, [])
        and (name in shape or name not in defaults or fact != defaults[name])
    }


def _brief(fact: Any) -> Any:
    """Its beginning, where it is long: a digest, the linears of a large model."""
    shown = " ".join(map(str, fact)) if isinstance(fact, list) else str(fact)
    long = len(shown) > _LINE
    return f"{shown[: _LINE - 1]}…" if long else shown if isinstance(fact, list) else fact
