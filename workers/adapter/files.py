"""Save an adapter, read it back, put it onto a model. Nothing is attached unless all of it fits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from workers.adapter.config import AdapterConfig
from workers.adapter.copies import copies_to_disk, with_rows
from workers.adapter.digest import base_digest, folder_digest
from workers.adapter.manifest import Manifest
from workers.adapter.modules import check_modules
from workers.adapter.raw import read_raw, write_raw
from workers.adapter.rescale import by_alpha, rescaled
from workers.adapter.stacked.names import parameter_names
from workers.adapter.stacking import to_canonical
from workers.adapter.tensor_names import Tensors, target_names, to_disk
from workers.adapter.written import config_values, peft_type
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.injection.adapter import Adapter
from workers.injection.inject import inject
from workers.injection.row_map import RowMap

ModelT = TypeVar("ModelT", bound=nn.Module)

ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function")
SAME_ACTIVATION = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "gelu_python": "gelu"}
"""Other names of the same function."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as read from its folder."""

    spec: AdapterSpec
    """Its shape; target_modules are names, also where it was trained with all-linear, or canonical
    paths, where some layers have what others lack."""
    tensors: Tensors
    """Stacked float32 tensors by canonical name, for `Adapter.load_state_dict`."""
    layer_list: str
    """Where PEFT's tensors lie in the model, such as `model.layers`."""
    config: AdapterConfig
    manifest: Manifest | None
    """None for an adapter that moetune did not write."""


def save(
    adapter: Adapter, folder: str | Path, manifest: Manifest, tensors: Tensors | None = None
) -> None:
    """Write an adapter as a folder, whole or not at all; replaces one that is there. `tensors` are
    its whole parameters by canonical name, where this process holds a part of them only."""
    tensors, spec = tensors or adapter.state_dict(), adapter.spec
    if peft_type(spec) == "LORA" and spec.goat_lr_ratio is not None:  # PEFT has no word for it
        tensors, spec = rescaled(tensors, spec, by_alpha(spec)), by_alpha(spec)
    if spec.train_tokens:
        spec = spec.model_copy(update={"train_tokens_of": with_rows(tensors)})
    names, parameters = target_names(tensors, spec), parameter_names(tensors, spec)
    values = config_values(spec, names, manifest.base.path, adapter.layer_list, parameters)
    copies = copies_to_disk(tensors, peft_type(spec), adapter.copied)
    in_layers = {name: one for name, one in tensors.items() if name.startswith("layers.")}
    raw = to_disk(in_layers, spec, adapter.layer_list)
    write_raw(folder, values, raw | copies, manifest)


def read(folder: str | Path) -> AdapterFiles:
    """Read a folder of ours, MixLoRA's, MoELoRA's or PEFT's; refuses a damaged one."""
    raw = read_raw(folder)
    tensors, spec, layer_list = to_canonical(raw.tensors, raw.config, str(folder))
    return AdapterFiles(spec, tensors, layer_list, raw.config, raw.manifest)


def attach(model: ModelT, folder: str | Path, slot: str = "default") -> ModelT:
    """Put the adapter in a folder onto its base model, for use, and return the model."""
    load_into(model, folder, slot)
    return model


def load_into(model: nn.Module, folder: str | Path, slot: str = "default") -> Adapter:
    """Put the adapter in a folder onto its base model; an InputError leaves the model as it was."""
    return put(model, read(folder), folder, slot)


def put(
    model: nn.Module,
    files: AdapterFiles,
    folder: str | Path,
    slot: str,
    rows: RowMap | None = None,
) -> Adapter:
    """`load_into` for a folder that is read already: the part that changes the model; `rows` as
    `inject` takes it."""
    _check_base(model, files, folder)
    if files.config.peft_type == "LORA":  # the other formats name layers by their number alone
        check_modules(model, files.tensors, files.layer_list, files.config, str(folder))
    try:
        adapter = inject(model, files.spec, slot=slot, rows=rows)
    except InputError as error:
        raise InputError(f"{folder}: does not fit this model: {error}") from None
    try:
        adapter.load_state_dict(files.tensors)
    except InputError as error:
        adapter.remove()
        raise InputError(f"{folder}: does not fit this model: {error}") from None
    return adapter


def inspect(folder: str | Path) -> dict[str, Any]:
    """What a folder holds, as plain values; reads and checks it whole, needs no model."""
    files = read(folder)
    manifest = files.manifest.model_dump(mode="json") if files.manifest else {}
    for ours in ("format", "files", "routing_sample"):
        manifest.pop(ours, None)
    base = manifest.pop("base", {"path": files.config.base_model_name_or_path, "digest": None})
    return {
        "folder": str(folder),
        "digest": folder_digest(folder),
        "format": peft_type(files.spec).lower(),
        **files.spec.model_dump(mode="json"),
        "layers": len({name.split(".")[1] for name in files.tensors if name.startswith("layers.")}),
        "parameters": sum(tensor.numel() for tensor in files.tensors.values()),
        "base_model": base["path"],
        "base_digest": base["digest"],
        **manifest,
    }


def _check_base(model: nn.Module, files: AdapterFiles, folder: str | Path) -> None:
    """Refuse an adapter of another base, which might well have the same shapes."""
    base = files.manifest.base if files.manifest else None
    if base and base.digest and base.digest != base_digest(model):
        raise InputError(f"{folder}: belongs to another base model, {base.path}: weights differ")
    check_activation(getattr(model, "config", None), files, folder)


def check_activation(config: Any, files: AdapterFiles, folder: str | Path) -> None:
    """Refuse an adapter whose experts use another activation than a model of this configuration."""
    found = (getattr(config, name, None) for name in ACTIVATION_KEYS)
    mine = next((name for name in found if name), None)
    theirs = files.config.act_fn
    if theirs and mine and _activation(theirs) != _activation(mine):
        raise InputError(f"{folder}: its experts use {theirs}, but the base model uses {mine}")


def _activation(name: str) -> str:
    return SAME_ACTIVATION.get(name, name)
