"""Random states and atomic files of a training run's state."""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workers.parallel.world import World
from workers.spec import InputError

STATE = "state.pt"


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) into `folder`, whole or not at all."""
    temporary = folder / f".{STATE}.{os.getpid()}"
    torch.save(dict(state), temporary)
    os.replace(temporary, folder / STATE)


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote. No code in the file is run."""
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: is no checkpoint that can be read: {line}") from None
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
    states = all_states[world.rank]
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
