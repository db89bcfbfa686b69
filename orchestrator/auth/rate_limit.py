"""Rates and quotas: how often each key may ask, and how many tokens it may use.

Libraries for this (`limits`) walk over every key and start a thread for each at every hit, to
clean up; what is needed is one number per key.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from orchestrator.auth.keys import OPERATOR, Caller, Counts
from orchestrator.config.limits import SECONDS, Allowance, LimitsSpec
from workers.engine.request import RequestError

UsageKey = tuple[str, int]
"""A key, and the beginning of a window of its quota, in seconds since 1970."""
Usage = Counter[UsageKey]
"""Tokens."""


class Spent(NamedTuple):
    """Tokens of one key in one window."""

    used: int = 0
    reserved: int = 0
    """By requests that are not over."""


LONGEST = max(SECONDS.values())
Check = Callable[[int, int], int]
"""Of a prompt's tokens, and those that are set aside already: all that the request may take."""
Save = Callable[[Mapping[UsageKey, Spent]], Usage]


class TooMany(RequestError):  # noqa: N818
    """429, and after how many seconds it is worth another try."""

    def __init__(self, message: str, code: str, seconds: float) -> None:
        super().__init__(message, None, 429, code)
        self.retry_after = max(1, math.ceil(seconds))


class Reservation:
    """What one request may use of a quota, until it is known what it has used."""

    def __init__(self, reserved: Usage, used: Usage, place: UsageKey, check: Check):
        self._reserved, self._used, self._place, self._check = reserved, used, place, check
        self._held, self._settled = 0, False

    def read(self, prompt: int) -> None:
        """The prompt has so many tokens. Where they are more than was set aside, raises as
        `RateLimiter.reserve` does, and nothing is set aside any more."""
        if self._settled:
            return
        held = self._held
        self._hold(0)
        self._hold(self._check(prompt, held))

    def settle(self, tokens: int) -> None:
        """So many were used, and there will be no more; only the first time counts."""
        if not self._settled:
            self._hold(0)
            self._used[self._place] += tokens
            self._settled = True

    def _hold(self, tokens: int) -> None:
        self._reserved[self._place] += tokens - self._held
        self._held = tokens


class RateLimiter:
    """Admits callers within their allowances.

    Rates are token buckets (generic cell rate algorithm, ITU-T I.371): a burst of the whole amount,
    then one request every `seconds / amount`. Quotas count in windows that begin at the full hour
    or at midnight UTC. A request reserves its longest answers and what its prompt is guessed to
    have; when the prompt was counted, that takes the guess's place or the request is refused. It is
    charged in the window that it came in for what it has used.
    """

    def __init__(
        self,
        limits: LimitsSpec | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`limits` holds what is allowed to those who have no allowance of their own. Rates go by
        `clock`, which nobody sets; windows, which all gateways share, by the clock on the `wall`.
        """
        limits, self._clock, self._wall = limits or LimitsSpec(), clock, wall
        self._rate = limits.rate and Allowance.parse(limits.rate)
        self._quota = limits.quota and Allowance.parse(limits.quota)
        self._next: dict[tuple[str, Counts], float] = {}
        """For each key, when its bucket would be full again."""
        self._used: Usage = Counter()
        self._reserved: Usage = Counter()
        self._saved: dict[UsageKey, Spent] = {}
        self._others: Usage = Counter()
        """What other gateways have used and reserved."""

    def admit(
        self, caller: Caller, answers: int = 1, counted: int = 0, what: Counts = "asks"
    ) -> None:
        """Count a request by its answers, of which some are counted already; raises `TooMany`, or
        RequestError 400 where no time is long enough to wait for so many. The rate holds for each
        `what` of its own."""
        rate = caller.rate or self._rate
        if caller is OPERATOR or not rate:
            return
        if answers > rate.amount:
            raise RequestError(f"n: this key may ask {rate}, and each answer counts", "n")
        now, each = self._clock(), rate.seconds / rate.amount
        bucket = caller.id, what
        full = max(self._next.get(bucket, now), now) + each * (answers - counted)
        wait = full - now - rate.seconds
        if wait > 1e-6:
            raise TooMany(f"this key may ask {rate} and has done so", "rate_limit_exceeded", wait)
        self._next[bucket] = full

    def reserve(
        self, caller: Caller, prompt: int, answer: int, param: str | None = None
    ) -> Reservation | None:
        """Set the most tokens of an answer aside, and those that a prompt is guessed to have; None
        where there is no quota. Raises `TooMany` where they are used up, RequestError 429 while
        others have reserved them, and 400 where they are more than the whole quota for certain,
        not by a guess. `param` is the request's field with the prompt."""
        quota = caller.quota or self._quota
        if caller is OPERATOR or not quota:
            return None
        place = caller.id, window_of(quota, self._wall())

        def check(prompt: int, held: int) -> int:
            asked = prompt + answer
            if asked > quota.amount:
                few = prompt < quota.amount
                raise RequestError(_more(prompt, answer, quota), "max_tokens" if few else param)
            if asked > held:
                self._check_left(asked, quota, place)
            return asked

        reservation = Reservation(self._reserved, self._used, place, check)
        reservation.read(max(0, min(prompt, quota.amount - answer)))
        return reservation

    def _check_left(self, asked: int, quota: Allowance, place: UsageKey) -> None:
        left = quota.amount - self._others[place] - self._used[place]
        takes, per = f"this request may take {asked} tokens", _per(quota)
        if asked > left:
            why = f"{takes}; of {per} {max(left, 0)} are left"
            raise TooMany(why, "insufficient_quota", place[1] + quota.seconds - self._wall())
        if asked > left - self._reserved[place]:
            why = f"{takes}; those that run may take what is left of {per}"
            raise RequestError(why, None, 429, "insufficient_quota")

    async def exchange(self, save: Save) -> None:
        """Save what has changed since the last time, and learn what other gateways have seen.

        `save` may block; it takes totals, so that it does no harm to save them twice, and returns
        the others' of all windows that may be open. Where it raises, nothing is lost.
        """
        places = self._used.keys() | self._reserved.keys()
        spent = {place: Spent(self._used[place], self._reserved[place]) for place in places}
        changed = {p: one for p, one in spent.items() if one.reserved or one != self._saved.get(p)}
        self._others = await asyncio.to_thread(save, changed)
        self._saved |= changed
        self._forget()

    def _forget(self) -> None:
        """Drop what no window holds any more."""
        now, wall = self._clock(), self._wall()
        self._next = {id: full for id, full in self._next.items() if full > now}
        for place, spent in list(self._saved.items()):
            over = place[1] < wall - 2 * LONGEST
            if over and spent == Spent(self._used[place], 0) and not self._reserved[place]:
                for counts in (self._used, self._reserved, self._saved):
                    del counts[place]


def _more(prompt: int, answer: int, quota: Allowance) -> str:
    of = f"a prompt of {prompt} and " if prompt else ""
    return f"this request may take {of}answers of {answer} tokens, more than {_per(quota)}"


def _per(quota: Allowance) -> str:
    return f"this key's quota of {quota.amount} tokens per {quota.unit}"


def window_of(quota: Allowance, now: float) -> int:
    """When the quota's present window began, in seconds since 1970."""
    return int(now // quota.seconds) * quota.seconds
