"""Rows in forward passes that are counted by their tokens, padding included.

Why by tokens: a pass of few short rows leaves a GPU idle, and one of many long rows may not fit.
"""

from collections.abc import Sequence

import numpy as np

_PASS = 1 << 40
"""Worth more than any padding: fewer passes come first."""


def fewest_passes(lengths: Sequence[int], tokens: int) -> int:
    """Passes that rows of these lengths need, the shortest first."""
    passes = held = longest = 0
    for length in reversed(lengths):
        if not held or longest * (held + 1) > tokens:
            passes, held, longest = passes + 1, 0, length
        held += 1
    return passes


def in_passes(lengths: Sequence[int], tokens: int, passes: int) -> list[slice]:
    """So many passes of rows that follow one another, the shortest first: each of at most `tokens`,
    or of one row. Of the ways to make the fewest it is the one with the least padding; where there
    are to be more, since another worker needs them, the largest are halved."""
    parts = _fewest(np.asarray(lengths, np.int64), tokens)
    while len(parts) < passes:
        sizes = [(end - start > 1) * (end - start) * lengths[end - 1] for start, end in parts]
        at = int(np.argmax(sizes))
        start, end = parts[at]
        middle = (start + end) // 2
        parts[at : at + 1] = [(start, middle), (middle, end)]
    return [slice(start, end) for start, end in parts]


def _fewest(
    lengths: "np.ndarray[tuple[int], np.dtype[np.int64]]", tokens: int
) -> list[tuple[int, int]]:
    """Where passes begin and end, by dynamic programming over the ends."""
    costs, came_from, first = np.zeros(len(lengths) + 1, np.int64), [0], 0
    for end in range(1, len(lengths) + 1):
        longest = int(lengths[end - 1])
        first = max(first, min(end - tokens // longest, end - 1))
        before = np.arange(first, end)
        ways = costs[first:end] + _PASS + longest * (end - before)
        best = int(np.argmin(ways))
        costs[end] = ways[best]
        came_from.append(first + best)
    parts, end = [], len(lengths)
    while end:
        parts.append((came_from[end], end))
        end = came_from[end]
    return parts[::-1]
