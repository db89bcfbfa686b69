"""What an engine tells of itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """An engine at one moment. The counts grow from its start."""

    running: int = 0
    """Requests that are generated for."""
    waiting: int = 0
    """Requests that wait for room in the cache."""
    adapters: int = 0
    """Adapter versions held."""
    reserved: float = 0.0
    """Share of the cache that the running requests may come to fill, 0 … 1."""
    passes: int = 0
    """Forward passes."""
    rows: int = 0
    """Requests in those passes, summed."""
    tokens: int = 0
    """Tokens in those passes, summed."""
