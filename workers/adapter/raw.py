"""An adapter folder's files as they stand: configuration, named tensors, manifest."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from workers.adapter import folder as folders
from workers.adapter import legacy
from workers.adapter.config import AdapterConfig, read_config
from workers.adapter.digest import file_digest
from workers.adapter.manifest import Manifest, read_manifest, write_manifest
from workers.adapter.stacked.expert_linears import as_stacked
from workers.adapter.tensor_names import Tensors
from workers.config.base import InputError, one_line, validated

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Of an adapter's tensors; what is coarser (float8) is meant for a base."""


@dataclass(frozen=True)
class RawAdapter:
    """What a folder holds, checked tensor by tensor but not yet against any model; m-LoRA's old
    layout by today's names, and PEFT's of experts that were linears by those of stacked ones."""

    config: AdapterConfig
    values: dict[str, Any]
    """The configuration as it stands, keys that we ignore included."""
    tensors: Tensors
    manifest: Manifest | None


def read_raw(path: str | Path) -> RawAdapter:
    """Read a folder; refuses damaged files and values that no training leaves behind."""
    folder = folders.existing(path)
    config, values = read_config(folder)
    manifest = read_manifest(folder)
    for name, digest in (manifest.files if manifest else {}).items():
        if name not in folders.FILES or file_digest(folders.required(folder, name)) != digest:
            raise InputError(f"{folder}: {name} is not the file that its manifest describes")
    tensors = _read_tensors(folder)
    names = legacy.modern_names(list(tensors), str(folder))
    named = {names[name]: tensor for name, tensor in tensors.items()}
    today, named = as_stacked(config, values, named, str(folder))
    config = config if today == values else validated(AdapterConfig, today, str(folder))
    return RawAdapter(config, today, named, manifest)


@dataclass(frozen=True)
class ForOthers:
    """How an adapter is written for tools that read no manifest."""

    as_bin: bool = False
    """For those that read only `.bin`."""
    chat_template: str | None = None
    """The adapter's own."""


def write_raw(
    path: str | Path,
    values: dict[str, Any],
    tensors: Tensors,
    manifest: Manifest | None = None,
    others: ForOthers = ForOthers(),
) -> None:
    """Write a folder whole or not at all."""
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, str(path))
    stored = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with folders.written_whole(Path(path)) as folder:
        folders.write_json(folder / folders.CONFIG, values)
        if others.as_bin:
            (folder / folders.PICKLED).write_bytes(_pickle(stored))
        else:
            (folder / folders.WEIGHTS).write_bytes(save(stored, metadata={"format": "pt"}))
        if others.chat_template:
            template = folder / folders.CHAT_TEMPLATE
            template.write_text(others.chat_template, encoding="utf-8")
        if manifest is not None:
            digests = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
            write_manifest(folder, manifest.model_copy(update={"files": digests}))


def _read_tensors(folder: Path) -> Tensors:
    if weights := folders.member(folder, folders.WEIGHTS):
        return _load(weights)
    if shards := folders.shards(folder):
        return _join(folder, shards)
    if pickled := folders.member(folder, folders.PICKLED):
        return _checked(_unpickle(pickled), pickled)
    raise InputError(f"{folder}: has neither {folders.WEIGHTS} nor {folders.PICKLED}")


def _load(path: Path) -> Tensors:
    try:
        # Not mapped, which leaves two numbers of each tensor behind for ever (safetensors 0.8.0).
        tensors = load_file(path, backend="pread")
    except Exception as error:  # a type of number that torch has none for is a KeyError, say
        raise InputError(f"{path}: is damaged: {one_line(error)}") from None
    return _checked(tensors, path)


def _checked(tensors: Tensors, path: Path) -> Tensors:
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, str(path))
    return tensors


def _join(folder: Path, shards: Mapping[str, Sequence[str]]) -> Tensors:
    """The tensors of several files; each must have just those that the index says."""
    joined: Tensors = {}
    for name, wanted in sorted(shards.items()):
        tensors = _load(folders.required(folder, name))
        for tensor in sorted(tensors.keys() ^ set(wanted)):
            state = "has" if tensor in tensors else "lacks"
            raise InputError(f"{folder / name}: {state} tensor {tensor}, unlike its index")
        joined |= tensors
    return joined


def _unpickle(path: Path) -> Tensors:
    """A `.bin` file through torch's restricted unpickler, which runs no code of the file."""
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged zip or pickle raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is damaged or holds more than tensors: {reason}") from None
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in loaded.items()
    ):
        raise InputError(f"{path}: must hold named tensors and nothing else")
    return loaded


def _pickle(tensors: Tensors) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _check_tensor(name: str, tensor: torch.Tensor, where: str) -> None:
    """Empty tensors are what a gather forgotten under ZeRO-3 leaves; NaN is a run gone wrong."""
    plain = tensor.layout == torch.strided and tensor.dtype in DTYPES and not tensor.is_meta
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():  # an expanded view
        raise InputError(
            f"{where}: tensor {name:.200} is no dense floating-point tensor of 16, 32 or 64 bits, "
            f"but {tensor.dtype}"
        )
    if tensor.numel() == 0:
        raise InputError(f"{where}: tensor {name} of shape {list(tensor.shape)} has no elements")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{where}: tensor {name} has values that are not finite")
