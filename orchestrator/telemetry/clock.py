"""A clock for durations: set by nobody, so it neither jumps nor goes back."""

import time
from datetime import UTC, datetime


def steady() -> datetime:
    """Now, by this machine's monotonic clock. Compares with other times of the same process only:
    it is no date."""
    return datetime.fromtimestamp(time.monotonic(), UTC)


def today() -> datetime:
    """Now, by the clock on the wall, which may be wrong and may be set at any time."""
    return datetime.now(UTC)
