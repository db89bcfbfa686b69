"""The state of a training run: its file, its folder, and the random generators."""

import io
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.config.base import InputError, one_line
from workers.parallel.world import World
from workers.run.files import DELETED, delete, new_file
from workers.run.folders import new_folder

STATE = "state.pt"
_PREFIX = "step-"


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run: folders `step-00000040`, which are whole or not there."""

    folder: Path

    def whole(self) -> list[Path]:
        """Those there are, oldest first."""
        return sorted(self.folder.glob(f"{_PREFIX}*"))

    def from_step(self, step: int) -> list[Path]:
        """Those of this step and later ones."""
        return [one for one in self.whole() if one >= self.path(step)]

    def last_step(self) -> int:
        """The step of the latest; 0 where there is none."""
        return max((int(one.name.removeprefix(_PREFIX)) for one in self.whole()), default=0)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"{_PREFIX}{step:08d}"

    @contextmanager
    def written(self, step: int) -> Iterator[Path]:
        """A new folder to write into, which becomes the checkpoint of `step` at the end, or
        vanishes. One that is there is damaged, or another run's."""
        with new_folder(self.path(step)) as folder:
            yield folder

    def prune(self, step: int, keep: int, spare: Path | None = None) -> None:
        """Leave the last `keep` up to `step`, and `spare`, which someone reads: nothing of later
        steps, which were not gone on with, and nothing of a writer that was killed."""
        upto = [folder for folder in self.whole() if folder <= self.path(step)]
        for old in set(self.whole()) - {*upto[-keep:], spare}:
            with suppress(OSError):
                delete(old)
        for hidden in (f".{_PREFIX}*", f"{DELETED}*"):
            for remains in self.folder.glob(hidden):
                shutil.rmtree(remains, ignore_errors=True)


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) into `folder`, whole or not at all.

    Raises InputError for a tensor without elements, which is what a gather forgotten under ZeRO-3
    or FSDP2 leaves, and OSError for a full disk.
    """
    _refuse_empty(state, str(folder))
    content = io.BytesIO()
    torch.save(dict(state), content)
    with new_file(folder / STATE, durable=True) as file:
        file.write(content.getbuffer())


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote. No code in the file is run."""
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way
        why = one_line(error)
        raise InputError(f"{folder}: is no checkpoint that can be read: {why}") from None
    return state


def seed_worker(seed: int, world: World) -> None:
    """Seed Python's and torch's generators, differently on each worker."""
    mixed = seed * 1_000_003 + world.rank
    random.seed(mixed)
    torch.manual_seed(mixed)


def random_states() -> dict[str, Any]:
    """The states of this process's generators: Python's, torch's, and the GPU's if there is one.

    numpy's is not among them: nothing here draws from it.
    """
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(all_states: Sequence[Mapping[str, Any]], world: World) -> None:
    """Set this worker's generators to their states among those of all workers.

    With another number of workers there is no exact continuation, and they stay as seeded.
    """
    if len(all_states) != world.size:
        return
    set_random_states(all_states[world.rank])


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set this process's generators to what `random_states` gave."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _refuse_empty(value: Any, where: str) -> None:
    """Look through mappings and lists for tensors without elements."""
    if isinstance(value, Tensor):
        if value.numel() == 0:
            raise InputError(f"{where} of shape {list(value.shape)} has no elements")
        return
    if isinstance(value, Mapping):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list | tuple) else []
    for name, item in items:
        if isinstance(item, Tensor | Mapping | list | tuple):
            _refuse_empty(item, f"{where}: {name}")
