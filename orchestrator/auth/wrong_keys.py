"""Wrong keys are counted, told in the log, and slow for who sends them."""

import asyncio
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from orchestrator.auth.rate_limit import TooMany

log = logging.getLogger(__name__)
FREE = 3
"""Wrong keys that an address may send before it is slowed: people mistype."""
FIRST_SECONDS = 0.1
"""What the next one waits for its answer; each further one twice as long …"""
LONGEST_SECONDS = 5.0
"""… up to this."""
WAITING = 8
"""Of one address at a time; more are answered 429 at once, so that they cost nothing."""
FORGOTTEN_SECONDS = 600.0
ADDRESSES = 4096
"""Remembered at most, the latest."""


@dataclass
class _Address:
    wrong: int = 0
    waiting: int = 0
    last: float = 0.0


class WrongKeys:
    """By client address. Nobody with a right key comes here, so nobody is slowed by others."""

    def __init__(
        self,
        count: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count` is called for each wrong key."""
        self._count, self._clock = count, clock
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    async def __call__(self, address: str) -> None:
        """Note a wrong key, and return when it may be answered; raises `TooMany`."""
        self._count()
        seen = self._note(address)
        wait = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(seen.wrong - FREE - 1, 30))
        if seen.wrong <= FREE:
            return
        if seen.waiting >= WAITING:
            raise TooMany("too many wrong keys", "invalid_api_key", wait)
        seen.waiting += 1
        try:
            await asyncio.sleep(wait)
        finally:
            seen.waiting -= 1

    def _note(self, address: str) -> _Address:
        now = self._clock()
        seen = self._addresses.setdefault(address, _Address())
        if now - seen.last > FORGOTTEN_SECONDS:
            seen.wrong = 0
        seen.wrong, seen.last = seen.wrong + 1, now
        self._addresses.move_to_end(address)
        if len(self._addresses) > ADDRESSES:
            self._addresses.popitem(last=False)
        if seen.wrong & (seen.wrong - 1) == 0:  # 1, 2, 4, …: a flood of keys is no flood of lines
            log.warning("a wrong key from %s, %d in a row by now", address, seen.wrong)
        return seen


def address_of(request: Request) -> str:
    """The client's address; of IPv6 the network, since each client has a whole one."""
    host = request.client.host if request.client else "?"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "?"
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), False))
