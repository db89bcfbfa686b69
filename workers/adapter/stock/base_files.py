"""A base model's folder, read one tensor after the other: never all of its weights at once."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from workers.adapter.model_files import weight_files
from workers.config.base import InputError, one_line

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""safetensors' names of those that a weight can be added to."""


class Stored(NamedTuple):
    """A tensor as its file's head describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class BaseFiles:
    """The weights of a base, by the names on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        """Every tensor, in the files' order; InputError for one that is no weight of 16 bits or
        more."""
        found: dict[str, Stored] = {}
        for path in self._paths():
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        part = file.get_slice(name)
                        found[name] = Stored(
                            path, tuple(part.get_shape()), self._dtype(path, name, part.get_dtype())
                        )
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
        return found

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as it is stored."""
        path = self.stored[name].file
        try:
            with safe_open(path, "pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
        return tensor

    def names(self, model: nn.Module) -> dict[str, str]:
        """The model's parameters that its files have: name on disk by name in the model. Files of
        a model without its head lack the first part of their names."""
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        found = {}
        for name in model.state_dict():
            spellings = (name, name.removeprefix(prefix), f"{prefix}{name}")
            known = next((one for one in spellings if one in self.stored), None)
            if known is not None:
                found[name] = known
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The precision of most of its numbers."""
        sizes: dict[torch.dtype, int] = {}
        for one in self.stored.values():
            sizes[one.dtype] = sizes.get(one.dtype, 0) + torch.Size(one.shape).numel()
        return max(sizes, key=sizes.__getitem__)

    def _paths(self) -> list[Path]:
        found = weight_files(self.folder)
        if not found:
            raise InputError(f"{self.folder}: holds no *.safetensors file of a base model")
        return found

    @staticmethod
    def _dtype(path: Path, name: str, stored: str) -> torch.dtype:
        if stored not in DTYPES:
            raise InputError(
                f"{path}: tensor {name} is {stored}; a base is exported from weights of 16 bits or "
                f"more ({', '.join(DTYPES)})"
            )
        return DTYPES[stored]
