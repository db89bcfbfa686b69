"""Whether a version computes more slowly than another does: like work, beside like requests, at
about the same time.

A version is slow by what its forward passes take (`workers.engine.timing`). These also take longer
where prompts are longer, where more is asked at once, and where the machine is busy; so each piece
of work is held only against such as is alike in all of that. Who shares a pass with a slow version
is as slow as that: so the other's passes are those that it was not in. What has no like says
nothing: a user with other habits, say, who is the only one on a side.

Shapes: N pieces of work, M pieces to compare with, S sizes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.telemetry.request_record import RequestRecord
from workers.engine.timing import AdapterSet, ComputeSpan, SharedPasses

Array = NDArray[np.float64]
ALIKE = 0.5
"""Powers of two that two sizes may be apart."""
NEIGHBOURS = 9
"""Pieces of like work, the nearest in time, whose median is the measure."""
Work = tuple[ComputeSpan, tuple[float, ...]]
"""Passes of one kind, and what makes them take longer, in tokens."""
NOBODY: AdapterSet = frozenset()


def _reading(record: RequestRecord, part: SharedPasses) -> Work:
    """A prompt, up to the first token. What the cache held was not read, but is looked at."""
    return part.prompt, (part.prompt.tokens, record.prompt_tokens)


def _writing(record: RequestRecord, part: SharedPasses) -> Work:
    """An answer, from the first token on."""
    return part.answer, (record.prompt_tokens + part.answer.tokens / 2,)


KINDS: Mapping[str, Callable[[RequestRecord, SharedPasses], Work]] = {
    "first token": _reading,
    "further tokens": _writing,
}
"""What is asked for before an answer begins, and while it goes on."""


class _Piece(NamedTuple):
    """What was computed of one request beside the same others."""

    at: float
    others: AdapterSet
    sizes: tuple[float, ...]
    passes: int
    pace: float
    """Seconds for a token."""


def times_as_long(
    kind: str,
    own: Sequence[RequestRecord],
    other: Sequence[RequestRecord],
    away: AdapterSet = NOBODY,
) -> Array:
    """How many times the other's each own pace is: one number for each request that there is
    enough like work for. Passes that versions of `away` were in are left out."""
    ours, theirs = _versions(own) - _versions(other), _versions(other) - _versions(own)
    found = (pieces for pieces in _pieces(kind, own, away) if pieces)
    mine = [max(pieces, key=lambda piece: piece.passes) for pieces in found]
    rest = [piece for pieces in _pieces(kind, other, ours | away) for piece in pieces]
    if not mine or len(rest) < NEIGHBOURS:
        return np.zeros(0)
    return _ratios([one._replace(others=one.others - theirs) for one in mine], rest)


def _versions(seen: Sequence[RequestRecord]) -> AdapterSet:
    return frozenset(record.version for record in seen)


def _pieces(kind: str, seen: Sequence[RequestRecord], away: AdapterSet) -> Iterator[list[_Piece]]:
    """Of each request."""
    work = KINDS[kind]
    for record in seen:
        yield [
            _Piece(
                record.came.timestamp(),
                part.others,
                (*sizes, span.load),
                span.passes,
                span.seconds / span.tokens,
            )
            for part in (record.timing.parts if record.timing else ())
            if not part.others & away
            for span, sizes in [work(record, part)]
            if span.tokens and span.seconds > 0
        ]


def _ratios(mine: Sequence[_Piece], rest: Sequence[_Piece]) -> Array:
    """To the median pace of the nearest like pieces."""
    known = {others: at for at, others in enumerate({piece.others for piece in rest})}
    company_N, company_M = (
        np.array([known.get(one.others, -1) for one in pieces]) for pieces in (mine, rest)
    )
    size_NS, size_MS = (np.log2([one.sizes for one in pieces]) for pieces in (mine, rest))
    at_N, at_M = (np.array([one.at for one in pieces]) for pieces in (mine, rest))
    pace_N, pace_M = (np.array([one.pace for one in pieces]) for pieces in (mine, rest))
    alike_NM = company_N[:, None] == company_M[None]
    for size_N, size_M in zip(size_NS.T, size_MS.T, strict=True):  # numpy is slow at short axes
        alike_NM &= np.abs(size_N[:, None] - size_M[None]) <= ALIKE
    away_NM = np.where(alike_NM, np.abs(at_N[:, None] - at_M[None]), np.inf)
    near_NK = np.argpartition(away_NM, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
    enough_N = alike_NM.sum(1) >= NEIGHBOURS
    ratio_n: Array = pace_N[enough_N] / np.median(pace_M[near_NK[enough_N]], axis=1)
    return ratio_n
