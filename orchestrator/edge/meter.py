"""Rates and quotas: how often each key may ask, and how many tokens it may use.

Libraries for this (`limits`) walk over every key and start a thread for each at every hit, to
clean up; what is needed is one number per key.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable

from orchestrator.answered import Answered
from orchestrator.edge.allowance import Allowance
from orchestrator.edge.keys import OPERATOR, Caller
from orchestrator.edge.limits import LimitsSpec
from workers.engine.request import RequestError

Usage = Counter[tuple[str, int]]
"""Tokens by key and by the beginning of their window, in seconds since 1970."""


class TooMany(RequestError):  # noqa: N818
    """429, and after how many seconds it is worth another try."""

    def __init__(self, message: str, code: str, seconds: float) -> None:
        super().__init__(message, None, 429, code)
        self.retry_after = max(1, math.ceil(seconds))


class Meter:
    """Admits callers within their allowances. An observer: it is told what they have used.

    Rates are token buckets (generic cell rate algorithm, ITU-T I.371): a burst of the whole amount,
    then one request every `seconds / amount`. Quotas count in windows that begin at the full hour
    or at midnight UTC; requests that run when one is used up end as they would have.
    """

    def __init__(
        self, limits: LimitsSpec | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`limits` holds what is allowed to those who have no allowance of their own."""
        limits, self._clock = limits or LimitsSpec(), clock
        self._rate = limits.rate and Allowance.parse(limits.rate)
        self._quota = limits.quota and Allowance.parse(limits.quota)
        self._next: dict[str, float] = {}
        """For each key, when its bucket would be full again."""
        self._quotas: dict[str, Allowance] = {}
        self._known: Usage = Counter()
        self._unsaved: Usage = Counter()

    def admit(self, caller: Caller) -> None:
        """Count one request; raises `TooMany`."""
        if caller is OPERATOR:
            return
        if quota := caller.quota or self._quota:
            self._within_quota(caller.id, quota)
        if rate := caller.rate or self._rate:
            self._within_rate(caller.id, rate)

    def __call__(self, answered: Answered) -> None:
        """Charge what was used to the caller's quota."""
        quota = self._quotas.get(answered.caller)
        if quota is not None and answered.role != "shadow":
            window = window_of(quota, answered.at.timestamp())
            self._unsaved[answered.caller, window] += (
                answered.prompt_tokens + answered.completion_tokens
            )

    async def exchange(self, save: Callable[[Usage], Usage]) -> None:
        """Save what was used since the last time, and learn what all gateways together have seen.

        `save` may block; it returns the usage of all windows that may be open. Where it raises,
        nothing is lost.
        """
        taken = self._unsaved.copy()
        self._known = await asyncio.to_thread(save, taken)
        self._unsaved -= taken

    def _within_quota(self, id: str, quota: Allowance) -> None:
        self._quotas[id] = quota
        now = self._clock()
        window = window_of(quota, now)
        used = self._known[id, window] + self._unsaved[id, window]
        if used >= quota.amount:
            raise TooMany(
                f"this key has used its quota of {quota.amount} tokens per {quota.unit}",
                "insufficient_quota",
                window + quota.seconds - now,
            )

    def _within_rate(self, id: str, rate: Allowance) -> None:
        now, each = self._clock(), rate.seconds / rate.amount
        full = max(self._next.get(id, now), now)
        wait = full + each - now - rate.seconds
        if wait > 1e-6:
            raise TooMany(f"this key may ask {rate} and has done so", "rate_limit_exceeded", wait)
        self._next[id] = full + each


def window_of(quota: Allowance, now: float) -> int:
    """When the quota's present window began, in seconds since 1970."""
    return int(now // quota.seconds) * quota.seconds
