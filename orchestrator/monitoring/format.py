"""Numbers and texts as people read them."""

import math
from typing import Any


def number(value: Any) -> str:
    """Four digits for a fraction, everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size(count: int) -> str:
    """Bytes as in 312 kB, 1.25 GB."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.3g} {unit}"


def duration(seconds: float) -> str:
    """As in 12 s, 3 min 05 s, 2 h 07 min; to the second below an hour."""
    if not math.isfinite(seconds):
        return "for ever"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plain(text: str, kept: str = "") -> str:
    """A text of somebody else's, with what a terminal would obey written out: escape sequences,
    newlines, marks that turn a line around. What is in `kept` stays."""
    return "".join(
        one if one.isprintable() or one in kept else one.encode("unicode_escape").decode()
        for one in text
    )
