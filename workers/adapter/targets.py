"""Which linears an adapter's configuration names: PEFT's keys, and its rule. No torch.

A pattern from outside is never run, since one can be made that runs for ever: where the
configuration has any, the tensors alone tell.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from workers.config.adapter import is_named
from workers.config.base import Spec

INDEX = r"(?:0|[1-9]\d{0,5})"
"""A number in a module's path."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int | str) else value


class TargetKeys(Spec):
    """What is adapted, in the keys of an adapter's configuration."""

    target_modules: list[str] | dict[str, bool] | str | None
    """Ends of paths, or one pattern. There may be more names than the model has."""
    target_parameters: list[str] | None = None
    """Weights that are no linear's own, such as stacked experts: ends of their paths."""
    exclude_modules: list[str] | str | None = None
    """The same for what is left out."""
    layers_to_transform: Annotated[list[int] | None, BeforeValidator(_listed)] = None
    """The only layers, unless a linear is named by its whole path."""
    layers_pattern: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    """Names of the lists that those are counted in; None: any."""

    @property
    def targets(self) -> tuple[str, ...] | None:
        """Names of the adapted linears; None for a pattern."""
        if isinstance(self.target_modules, str):
            return None
        if self.target_modules is None:
            return ()
        if isinstance(self.target_modules, dict):
            return tuple(name for name, wanted in self.target_modules.items() if wanted)
        return tuple(self.target_modules)

    @property
    def every_layer(self) -> bool:
        """Whether `targets` are names that stand for the same linears of every layer."""
        numbered = re.compile(rf"(?:.*\.)?{INDEX}\..*")
        return (
            not self.exclude_modules
            and not self.layers_to_transform
            and self.targets is not None
            and not any(numbered.fullmatch(name) for name in self.targets)
        )

    def adapts_parameter(self, path: str) -> bool:
        """Whether the stacked weight at `path` in the model is adapted."""
        return is_named(path, self.target_parameters or ())

    def adapts(self, path: str) -> bool | None:
        """Whether the linear at `path` in the model is adapted; None: only the tensors tell."""
        if isinstance(self.exclude_modules, str) and self.exclude_modules:
            return None
        if is_named(path, self.exclude_modules or ()):
            return False
        if self.targets is None:
            return None
        if path in self.targets:
            return True
        return is_named(path, self.targets) and self._is_in_layers(path)

    def _is_in_layers(self, path: str) -> bool | None:
        if not self.layers_to_transform:
            return True
        lists = [name for name in self.layers_pattern or () if name]
        if not all(re.fullmatch(r"\w+", name) for name in lists):
            return None
        heads = [rf"(?:^|.*?\.){name}" for name in lists] or [r".*?\.[^.]*"]
        found = (re.match(rf"{head}\.(\d+)\.", path) for head in heads)
        return next((int(one[1]) in self.layers_to_transform for one in found if one), False)
