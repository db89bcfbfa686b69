"""What the gateway tells its observers of every request: metrics, guards, audit and drift."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from workers.engine.routing.types import RequestRouting
from workers.engine.timing import Timing


@dataclass(frozen=True)
class RequestRecord:
    """A request that ended, well or not. Holds no secret, and text only where that is allowed."""

    at: datetime
    """When it came, in UTC: for records."""
    came: datetime
    """The same by `orchestrator.telemetry.request_record.steady`: for durations."""
    request: str
    """The answer's id, such as `chatcmpl-…`."""
    name: str | None
    """The registry's name; None for the base."""
    version: str
    """The version's id, or `base`; `-` where it was refused before it reached one."""
    caller: str
    """Id of the key, never the key; `anonymous` where none is wanted."""
    status: int
    """HTTP status that the client got, or would have got; 499 where it went away."""
    error: str | None
    """Code of the error; None where the answer is whole."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """From the request's arrival to its end."""
    first_token_seconds: float | None
    """From the request's arrival to the first token; None where there was none."""
    role: str = "served"
    """`served`, `canary`, `pinned` where the request named the version itself, or `shadow`: an
    answer that was compared and never returned."""
    agreement: float | None = None
    """Of a shadow: the share of tokens that are the returned answer's at the same place."""
    routing: RequestRouting | None = None
    timing: Timing | None = None
    """How long was computed on it, of several answers the first; None where nothing was."""
    user: str = ""
    """Hash of whom it was routed for: a user, a key, or the request itself."""
    prompt: str | None = None
    answer: str | None = None


Observer = Callable[[RequestRecord], None]
"""Called in the gateway's event loop: must return at once, and must not raise."""


def steady() -> datetime:
    """Now, by this machine's monotonic clock. Compares with other times of the same process only:
    it is no date."""
    return datetime.fromtimestamp(time.monotonic(), UTC)


def today() -> datetime:
    """Now, by the clock on the wall, which may be wrong and may be set at any time."""
    return datetime.now(UTC)
