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
OTHERS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Of masks and the like, which older files hold and no model has as weights."""


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
        """Every tensor, in the files' order."""
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
        a model without its head lack the first part of their names. InputError for a weight that is
        not of 16 bits or more."""
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        found = {}
        for name in model.state_dict():
            spellings = (name, name.removeprefix(prefix), f"{prefix}{name}")
            known = next((one for one in spellings if one in self.stored), None)
            if known is None:
                continue
            at = self.stored[known]
            if at.dtype not in DTYPES.values():
                kind = next(one for one, dtype in OTHERS.items() if dtype == at.dtype)
                raise _unfit(at.file, known, kind)
            found[name] = known
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The precision of most of its numbers."""
        sizes: dict[torch.dtype, int] = {}
        for one in self.weights():
            sizes[one.dtype] = sizes.get(one.dtype, 0) + torch.Size(one.shape).numel()
        return max(sizes, key=sizes.__getitem__)

    def weights(self) -> list[Stored]:
        """Those of 16 bits or more."""
        found = [one for one in self.stored.values() if one.dtype in DTYPES.values()]
        if not found:
            raise InputError(f"{self.folder}: holds no weights of 16 bits or more")
        return found

    def _paths(self) -> list[Path]:
        found = weight_files(self.folder)
        if not found:
            raise InputError(f"{self.folder}: holds no *.safetensors file of a base model")
        return found

    @staticmethod
    def _dtype(path: Path, name: str, stored: str) -> torch.dtype:
        known = {**DTYPES, **OTHERS}
        if stored not in known:
            raise _unfit(path, name, stored)
        return known[stored]


def _unfit(path: Path, name: str, kind: str) -> InputError:
    return InputError(
        f"{path}: tensor {name} is {kind}; a base is exported from weights of 16 bits or more "
        f"({', '.join(DTYPES)})"
    )
