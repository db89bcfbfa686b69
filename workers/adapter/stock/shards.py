"""Tensors to safetensors files, one after the other: a shard is all that is in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from workers.adapter import folder as folders
from workers.adapter.model_files import INDEX, WHOLE
from workers.adapter.stock.plan import NewTensor
from workers.config.base import InputError

SHARD_BYTES = 5 * 10**9
"""No shard is larger, unless one tensor is."""


def in_shards(
    pieces: Sequence[NewTensor], dtype: torch.dtype, most: int = SHARD_BYTES
) -> list[list[NewTensor]]:
    """The pieces of each file."""
    shards: list[list[NewTensor]] = []
    room = 0
    for piece in pieces:
        size = piece.size(dtype)
        if not shards or size > room:
            shards.append([])
            room = most
        shards[-1].append(piece)
        room -= size
    return shards


def write_shards(
    folder: Path,
    shards: Sequence[Sequence[NewTensor]],
    dtype: torch.dtype,
    tell: Callable[[str], None],
) -> None:
    """Write all of them, and their index where there are several; OSError on a full disk."""
    places: dict[str, str] = {}
    for number, pieces in enumerate(shards, 1):
        name = _name(number, len(shards))
        tell(f"writing {name}")
        tensors = {piece.name: _rounded(piece, dtype) for piece in pieces}
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # how it says that the disk is full
            raise OSError(str(error)) from None
        # It makes files that nobody else may read, whatever the user's mask is.
        (folder / name).chmod(0o666 & ~_mask(folder))
        places |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        numbers = sum(piece.numbers for pieces in shards for piece in pieces)
        total = sum(piece.size(dtype) for pieces in shards for piece in pieces)
        size = {"total_parameters": numbers, "total_size": total}
        folders.write_json(folder / INDEX, {"metadata": size, "weight_map": places})


def _mask(folder: Path) -> int:
    """What new files here lack, by the folder itself, which was made a moment ago."""
    return ~folder.stat().st_mode & 0o666


def _rounded(piece: NewTensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = piece.make().to(piece.kept or dtype).contiguous()
    assert tuple(tensor.shape) == piece.shape, piece.name
    if piece.kept is None and not torch.isfinite(tensor).all():
        raise InputError(
            f"in {str(dtype).removeprefix('torch.')}: it cannot hold the numbers of {piece.name}; "
            "nothing was written; take --dtype bfloat16 or float32"
        )
    return tensor


def _name(number: int, count: int) -> str:
    return WHOLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
