"""Digests that name an adapter's content and its base model. torch only inside functions."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from workers.adapter import folder as folders
from workers.spec import InputError

if TYPE_CHECKING:
    import torch

SAMPLES = 1024


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: str | Path) -> str:
    """SHA-256 of an adapter folder: names and contents of its files, manifest included."""
    folder = folders.existing(folder)
    whole = hashlib.sha256()
    for name in folders.FILES:
        path = folders.member(folder, name)
        if path is not None:
            whole.update(f"{name}={file_digest(path)}\n".encode())
    return whole.hexdigest()


def base_digest(model: "str | Path | torch.nn.Module") -> str:
    """Digest of a base model's weights, the same for its folder and for the loaded model.

    It must not depend on what loading changes: precision, names, tied copies, adapters already
    attached. So it is the set of (shape, about 1000 evenly spaced values as bfloat16) over all
    vectors and matrices. It tells base models apart; it is no proof against forgery.
    """
    import torch

    weights = _loaded(model) if isinstance(model, torch.nn.Module) else _stored(Path(model))
    prints = {_fingerprint(weight) for weight in weights if weight.ndim in (1, 2)}
    return hashlib.sha256(b"".join(sorted(prints))).hexdigest()


def _loaded(model: "torch.nn.Module") -> "Iterator[torch.Tensor]":
    from workers.pack import Site

    sites = [module for module in model.modules() if isinstance(module, Site)]
    adapters = {id(weight) for site in sites for weight in site.adapters.parameters()}
    return (weight.detach() for weight in model.parameters() if id(weight) not in adapters)


def _stored(folder: Path) -> "Iterator[torch.Tensor]":
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(f"{folder}: is no folder of a base model in safetensors format")
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                yield from (file.get_tensor(name) for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None


def _fingerprint(weight: "torch.Tensor") -> bytes:
    import torch

    flat = weight.reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLES)].to(torch.bfloat16).cpu()
    shape = ",".join(map(str, weight.shape)).encode()
    return hashlib.sha256(shape + sample.view(torch.int16).numpy().tobytes()).digest()
