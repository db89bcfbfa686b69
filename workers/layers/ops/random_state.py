"""Random numbers that move no other draw."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """torch's generators, of the CPU and of this device, are afterwards what they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """What is drawn in the block depends on `seed` alone; torch's generators are afterwards what
    they were."""
    with random_state_kept(device):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def mixed(seed: int, number: int) -> int:
    """A seed of its own for each number (the increments of SplitMix64)."""
    return (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % 2**63
