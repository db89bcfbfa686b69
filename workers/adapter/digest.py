"""Digests that name an adapter's content and its base model. torch only inside functions."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.adapter import folder as folders
from workers.adapter.model_files import weight_files
from workers.config.base import InputError

if TYPE_CHECKING:
    import torch

SAMPLES = 1024
EXPERT = re.compile(r"\.experts\.\d+\.")
"""In names of one native expert's weights: loading stacks them."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: str | Path) -> str:
    """SHA-256 of an adapter folder: names and contents of its files, manifest included."""
    folder = folders.existing(folder)
    whole = hashlib.sha256()
    for name in (*folders.FILES, *folders.INDEXES, *sorted(folders.shards(folder))):
        path = folders.member(folder, name)
        if path is not None:
            whole.update(f"{name}={file_digest(path)}\n".encode())
    return whole.hexdigest()


def base_digest(model: "str | Path | torch.nn.Module") -> str:
    """Digest of a base model's weights, the same for its folder and for the loaded model.

    It must not depend on what loading changes: precision, names, tied copies, stacked experts,
    quantisation, adapters already attached. So it is the set of (shape, about 1000 evenly spaced
    values as bfloat16) over all vectors and matrices but native experts'; those of a model that is
    quantised, or in shards over several workers, are read from the folder that it was loaded from.
    It tells base models apart; it is no proof against forgery.
    """
    import torch

    source = _source(model) if _is_elsewhere(model) else model
    weights = _loaded(source) if isinstance(source, torch.nn.Module) else _stored(Path(source))
    prints = {_fingerprint(weight) for weight in weights if weight.ndim in (1, 2)}
    return hashlib.sha256(b"".join(sorted(prints))).hexdigest()


def _is_elsewhere(model: Any) -> bool:
    """Whether this process does not have the weights as they were."""
    if getattr(model, "hf_quantizer", None):
        return True
    from workers.injection.sharded import is_sharded

    return hasattr(model, "parameters") and is_sharded(model)


def _loaded(model: "torch.nn.Module") -> "Iterator[torch.Tensor]":
    """What its files hold too: parameters, and buffers that are kept, such as a router's bias."""
    from workers.injection.wrapper import AdaptedModule

    adapted = [module for module in model.modules() if isinstance(module, AdaptedModule)]
    adapters = {id(weight) for one in adapted for weight in one.adapters.parameters()}
    return (
        weight.detach()
        for name, weight in model.state_dict(keep_vars=True).items()
        if id(weight) not in adapters and not EXPERT.search(name)
    )


def _source(model: Any) -> Path:
    """The folder, or the hub's cached one, that a transformers model was loaded from."""
    from transformers.utils import cached_file

    name, revision = model.name_or_path, getattr(model.config, "_commit_hash", None)
    if name and Path(name).is_dir():
        return Path(name)
    try:
        found = cached_file(name, "config.json", revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: a quantised model is known by the files that it was loaded from, and they "
            "are no longer there"
        ) from error
    return Path(found).parent


def _stored(folder: Path) -> "Iterator[torch.Tensor]":
    from safetensors import SafetensorError, safe_open

    paths = weight_files(folder)
    if not paths:
        raise InputError(f"{folder}: is no folder of a base model in safetensors format")
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if not EXPERT.search(name)]  # noqa: SIM118
                yield from (file.get_tensor(name) for name in names)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None


def _fingerprint(weight: "torch.Tensor") -> bytes:
    import torch

    flat = weight.reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLES)].to(torch.bfloat16).cpu()
    shape = ",".join(map(str, weight.shape)).encode()
    return hashlib.sha256(shape + sample.view(torch.int16).numpy().tobytes()).digest()
