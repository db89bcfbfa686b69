"""Who gets how much of what is done before a request is admitted: one at a time of each tenant."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from workers.engine.request import RequestError

SHARE = 0.1
"""Of one core that a tenant's schemas may take …"""
AHEAD = 30.0
"""… and by how many seconds they may be ahead of that."""


@dataclass
class Turn:
    """A tenant's: who has it, and how many have it or wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    count: int = 0


class Turns:
    """One at a time of each tenant, in the order of their arrival. So a tenant waits for as many as
    there are other tenants, and not for all that one of them sent."""

    def __init__(self, most: int) -> None:
        """`most` of one tenant may have it or wait."""
        self._most = most
        self._turns: dict[str, Turn] = {}
        self._rests: dict[str, float] = {}

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """This tenant's turn; RequestError 429 where too many wait."""
        turn = self._turns.setdefault(tenant, Turn())
        if turn.count >= self._most:
            raise RequestError("too many requests wait; try again", None, 429, "queue_full")
        turn.count += 1
        try:
            async with turn.lock:
                await asyncio.sleep(self._rests.get(tenant, 0) - time.monotonic())
                yield
        finally:
            turn.count -= 1
            if turn.count == 0:
                del self._turns[tenant]

    def rest(self, tenant: str, seconds: float) -> None:
        """This tenant's next turn begins so much later: meanwhile it is the others'."""
        now = time.monotonic()
        resting = {one: until for one, until in self._rests.items() if until > now}
        self._rests = resting | {tenant: now + seconds}


class Spending:
    """What each tenant's schemas took, which is held against those that follow.

    A leaky bucket (generic cell rate algorithm, as for the keys' rates): `SHARE` of a core flows
    off, and nothing more is begun for who is `AHEAD` seconds ahead of that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid: dict[str, float] = {}
        """When what a tenant took is paid off; only those who still owe."""
        self._lock = threading.Lock()

    def check(self, tenant: str) -> None:
        """RequestError 429 where a tenant has taken too much."""
        if self._paid.get(tenant, 0) - self._clock() > AHEAD:
            raise RequestError(
                "this key's schemas took too much computing lately; try again",
                "response_format",
                429,
                "rate_limit_exceeded",
            )

    def charge(self, tenant: str, seconds: float) -> None:
        """It took so much CPU time. From any thread."""
        now = self._clock()
        with self._lock:
            paid = max(self._paid.get(tenant, now), now) + seconds / SHARE
            owing = {one: until for one, until in self._paid.items() if until > now}
            self._paid = owing | {tenant: paid}
