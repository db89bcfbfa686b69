"""`moetune export`: a trained adapter as an ordinary checkpoint, without a cluster."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator import completion
from orchestrator.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    Storage,
    Store,
    names_a_folder,
    registry,
)
from orchestrator.output import print_json

if TYPE_CHECKING:
    from orchestrator.registry.exported import Exported

app = typer.Typer()


@app.command()
def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER",
            help="NAME or NAME@VERSION; or an adapter's folder, ours or MixLoRA's or PEFT's.",
            autocompletion=completion.names,
        ),
    ],
    to: Annotated[Path, typer.Option(help="New folder for the checkpoint.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            envvar="MOETUNE_BASE",
            help="The base model, where the adapter does not say it or it has moved.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option(help="Precision of the weights; left out: the base's own."),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter and its base as an ordinary checkpoint, for vLLM, SGLang, llama.cpp and
    transformers.

    A mixture becomes the base's sparse twin (Mixtral, Qwen-MoE and others), plain LoRA is merged.
    What that cannot be exact for is refused. For the adapter alone, in the formats of other tools:
    moetune adapter export."""
    from workers.adapter.stock.export import prepare
    from workers.adapter.stock.room import check_target
    from workers.models.files import base_folder

    check_target(to)
    chosen = _chosen(what, base, storage, store)
    plan = prepare(
        chosen.folder,
        base_folder(chosen.model),
        name=chosen.name,
        base_name=chosen.base_name,
        dtype=dtype,
    )
    tell = partial(print, file=sys.stderr, flush=True)
    tell(plan.told())
    if chosen.trained_packed:
        tell(
            f"it was trained beside a base rounded to {chosen.trained_packed}; the checkpoint has "
            "the base's weights as they are"
        )
    if not plan.has_tokenizer:
        tell("the base has no tokenizer, and so has the checkpoint none")
    if plan.facts.remark:
        tell(plan.facts.remark)
    plan.write(to, tell)
    if as_json:
        return print_json({"folder": to, **plan.facts.as_dict()})
    return print(f"exported {chosen.name} to {to}")


def _chosen(what: str, base: str | None, storage: str, store: str | None) -> "Exported":
    from orchestrator.registry.exported import Exported

    if names_a_folder(what, storage, store):
        return Exported.of_folder(Path(what), base)
    return Exported.of_name(registry(storage, store), what, base)
