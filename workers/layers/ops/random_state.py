"""Random numbers that move no other draw."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """torch's generators, of the CPU and of this device, are afterwards what they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
