"""Decoder layers compiled by torch for a run's training passes.

All layers of a kind share a graph, and so do rows of all lengths. What is measured between passes
has other shapes and no gradients, and runs as it is written. Shapes: B rows, S positions.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from workers.config.base import one_line
from workers.config.train import TrainSpec
from workers.data.batches import Batch
from workers.data.store.cache import COMPILED_FOLDER, cache_folder
from workers.injection.adapter import Adapter
from workers.injection.targets import decoder_layers
from workers.layers.ops.random_state import random_state_kept
from workers.models.base import Base
from workers.train.forward import batch_loss, recorded

TRIED_BS = (11, 23)
"""Sizes that no model has: torch takes equal sizes for the same, and a graph would be for it alone.
So it does with 1."""
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Says where torch's compiler keeps what it has made."""


class CompiledLayers:
    """The base's decoder layers with a run's adapter, compiled until `remove`."""

    def __init__(
        self,
        base: Base,
        adapter: Adapter,
        *,
        rank_space: bool,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        """Compiles them in a forward and backward pass. Where that fails a warning says so, and
        they are as before. `rank_space`: whether losses compare experts in it."""
        self._layers = decoder_layers(base.model)[1]
        _keep_in_our_cache()
        torch.compiler.reset()  # graphs of a former run's layers would count against the limit
        started = time.perf_counter()
        for layer in self._layers:
            layer.compile(backend=backend, dynamic=True)
        try:
            _pass(base, adapter, rank_space)
        except Exception as error:  # Compilers fail in many ways: none, a broken cache, a driver.
            self.remove()
            self.words = (
                f"torch.compile does not work here, and the run goes on without: {_why(error)}"
            )
            warnings.warn(self.words, stacklevel=2)
        else:
            self.words = f"decoder layers, in {time.perf_counter() - started:.0f} s"

    @staticmethod
    def as_written() -> AbstractContextManager[None]:
        """Inside the block nothing that is compiled is used, in any thread."""
        stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
        return stance

    def remove(self) -> None:
        """Leave the layers as they were."""
        for layer in self._layers:
            layer.compile(disable=True)


def compiled_layers(spec: TrainSpec, base: Base, adapter: Adapter) -> CompiledLayers | None:
    """Those of a run; None where its job does not ask for them."""
    if not spec.model.compile:
        return None
    return CompiledLayers(base, adapter, rank_space=bool(spec.loss.comparing()))


def _pass(base: Base, adapter: Adapter, rank_space: bool) -> None:
    """A forward and backward pass of a training step, which leaves nothing behind."""
    rows, positions = TRIED_BS
    vocabulary = base.model.config.get_text_config().vocab_size
    ids_BS = torch.arange(rows * positions).view(rows, positions) % vocabulary
    batch = Batch(ids_BS, torch.ones_like(ids_BS), ids_BS)
    training = base.model.training
    base.model.train()
    try:
        with random_state_kept(base.device):
            with recorded(adapter, base, batch, rank_space=rank_space):
                loss = batch_loss(base, batch)
            torch.autograd.grad(loss, list(adapter.parameters()), allow_unused=True)
    finally:
        base.model.train(training)


def _keep_in_our_cache() -> None:
    """In place of a folder in /tmp that anyone could have made: torch reads code from it. It sets
    the variable itself, to that folder, as soon as its compiler is imported."""
    chosen = os.environ.get(CACHE_VARIABLE, "")
    if not chosen or chosen.startswith(f"{tempfile.gettempdir()}/torchinductor_"):
        os.environ[CACHE_VARIABLE] = str(cache_folder(COMPILED_FOLDER))


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"[:300]
