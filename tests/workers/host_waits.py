"""Where the host would wait for a GPU, found without one: `meta` tensors stand for a GPU's.

They have no numbers, so nothing can be read of them unnoticed: a read is counted here and answered
with zeros (whole numbers with one that a test may choose), and what makes a shape of numbers
(`nonzero`, a mask as an index) fails as it stands. A copy from the host is counted unless it is one
that nobody waits for.
"""

import traceback
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


class HostWaits:
    """As a with block: counts where the host waited inside it."""

    def __init__(self, whole_number: int = 0) -> None:
        self.whole_number = whole_number
        self.places: list[str] = []
        """The line of ours that waited, each time."""
        self._modes = (_Reads(self), _Makes(self))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*reason)

    def note(self, what: str) -> None:
        """One more."""
        ours = [one for one in traceback.extract_stack() if "/workers/" in one.filename]
        inner = [one for one in ours if "/tests/" not in one.filename]
        place = inner[-1] if inner else traceback.extract_stack()[0]
        self.places.append(f"{what} in {place.filename}:{place.lineno}")


class _Reads(TorchDispatchMode):
    """Numbers that are read, and copies between host and device."""

    def __init__(self, found: HostWaits) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self,
        operation: Any,
        types: object,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        if operation is _aten._local_scalar_dense.default and arguments[0].is_meta:
            self._found.note("item")
            return 0.0 if arguments[0].is_floating_point() else 0
        if operation is _aten._to_copy.default:
            source, device = arguments[0], torch.device(options.get("device") or "meta")
            if source.is_meta and device.type == "cpu":
                self._found.note("to the host")
                answer = 0 if source.is_floating_point() else self._found.whole_number
                return torch.full(source.shape, answer, dtype=options.get("dtype") or source.dtype)
            if not source.is_meta and device.type == "meta" and options.get("device"):
                self._copied(options.get("non_blocking", False))
        if operation is _aten.copy_.default:
            onto, source, *rest = arguments
            if onto.is_meta and not source.is_meta and source.dim():
                self._copied(bool(rest and rest[0]) or options.get("non_blocking", False))
        return operation(*arguments, **options)

    def _copied(self, alone: bool) -> None:
        if not alone:
            self._found.note("from the host")


class _Makes(TorchFunctionMode):
    """Tensors made on the device of the host's numbers."""

    def __init__(self, found: HostWaits) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        made = function(*arguments, **(options or {}))
        if function in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and made.is_meta:
            self._found.note("from the host")
        return made
