"""Which files of a folder are a model's weights: those that transformers loads. No torch."""

import re
from pathlib import Path

from workers.adapter import folder as folders
from workers.config.base import InputError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_PART = re.compile(r"[^/\\\0]+\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """The one file before the parts of an index, as transformers has it: an index may be stale, and
    some folders hold all weights a second time, in their maker's own format. Without either, all
    that may be it; none where there is none."""
    whole, index = folder / WHOLE, folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        return [folder / name for name in _parts(index)]
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))


def _parts(index: Path) -> list[str]:
    names = list(folders.weight_map(index).values())
    for name in names:
        if not isinstance(name, str) or not _PART.fullmatch(name):
            raise InputError(f"{index}: {name!r:.80} is no *.safetensors file of this folder")
    return list(dict.fromkeys(names))
