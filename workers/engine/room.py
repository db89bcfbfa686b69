"""Room for one more request beside those that run, and who gives some back to make it."""

import math
import time
from collections import Counter
from collections.abc import Collection, Sequence

from workers.engine.prefix_cache import PAGE
from workers.engine.sequence import TokenSequence

RETURNS = 1.0
"""Seconds for which the room that was made for a tenant waits for its next request: were it filled
at once, each of many short requests would take back a long one, which has to be read again."""


class Room:
    """Of the cache, and of the rows of a pass; requests fill it by the most that they may come to.

    Everybody may fill what is free. Where a tenant that has less than its share finds none, those
    that have more give it back, but nothing that has not got a quantum of tokens yet: a request
    larger than its tenant's share would be read again and again, and get none.
    """

    def __init__(self, capacity: int, rows: int) -> None:
        """`capacity`: tokens of the cache; `rows`: requests at once."""
        self.capacity, self._rows = capacity, rows
        self._aside: dict[str, tuple[int, float]] = {}
        """By tenant, what was made for it, and until when that waits for it."""
        self.returns = math.inf
        """When some of what kept the last one out runs out, by the monotonic clock."""

    def used(self, running: Collection[TokenSequence]) -> int:
        """Tokens of the cache that may come to be filled."""
        return sum(map(_share, running))

    def fits(self, newcomer: TokenSequence, running: Collection[TokenSequence]) -> bool:
        """Whether there is room, beside what waits for others. One alone always has it."""
        return not running or self._fits(newcomer, running, self._set_aside(newcomer, running))

    def givers(
        self, newcomer: TokenSequence, running: Sequence[TokenSequence], tenants: set[str]
    ) -> list[TokenSequence] | None:
        """Who must give way to a request that does not fit, the latest of those that have most;
        None where it has to wait. `running` is in the order of coming, `tenants` share it."""
        fair = self.capacity // len(tenants | self._aside.keys())
        left, found = list(running), []
        holds: Counter[str] = Counter()
        for one in running:
            holds[one.asker.tenant] += self._weight(one)
        if holds[newcomer.asker.tenant] + self._weight(newcomer) > fair:
            return None
        while not self._fits(newcomer, left):
            over = [one for one in reversed(left) if one.settled and holds[one.asker.tenant] > fair]
            if not over:
                return None
            latest = max(over, key=lambda one: holds[one.asker.tenant])
            holds[latest.asker.tenant] -= self._weight(latest)
            left.remove(latest)
            found.append(latest)
        if found:
            self._wait_for(newcomer.asker.tenant, _share(newcomer))
        return found

    def ended(self, sequence: TokenSequence) -> None:
        """A request is over; what was made for its tenant waits from now on."""
        tenant = sequence.asker.tenant
        if made := self._aside.get(tenant):
            self._wait_for(tenant, made[0])

    def _wait_for(self, tenant: str, tokens: int) -> None:
        self._aside[tenant] = tokens, time.monotonic() + RETURNS

    def _fits(
        self, newcomer: TokenSequence, running: Collection[TokenSequence], aside: int = 0
    ) -> bool:
        used = self.used(running) + _share(newcomer) + aside
        return used <= self.capacity and len(running) < self._rows

    def _set_aside(self, newcomer: TokenSequence, running: Collection[TokenSequence]) -> int:
        self.returns = math.inf
        if not self._aside:
            return 0
        now, held = time.monotonic(), Counter[str]()
        for one in running:
            held[one.asker.tenant] += _share(one)
        self._aside = {t: made for t, made in self._aside.items() if held[t] or made[1] > now}
        ends = [until for _, until in self._aside.values() if until > now]
        self.returns = min(ends, default=math.inf)
        others = self._aside.keys() - {newcomer.asker.tenant}
        return sum(max(0, self._aside[tenant][0] - held[tenant]) for tenant in others)

    def _weight(self, sequence: TokenSequence) -> int:
        """What it has of cache and rows, whichever is the larger part, in tokens of the cache."""
        return max(_share(sequence), -(-self.capacity // self._rows))


def _share(sequence: TokenSequence) -> int:
    """Tokens of cache that a request may come to fill, in whole pages."""
    return -(-sequence.size // PAGE) * PAGE
