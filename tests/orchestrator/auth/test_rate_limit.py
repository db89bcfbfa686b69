"""Rates and quotas by a clock that stands in the test."""

import asyncio
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from orchestrator.auth.keys import ANONYMOUS, OPERATOR, Caller
from orchestrator.auth.rate_limit import RateLimiter, Spent, TooMany, Usage, UsageKey
from orchestrator.config.limits import Allowance, LimitsSpec
from workers.engine.request import RequestError

HOUR, DAY = 3600, 86400
NOON = 20000.5 * DAY
SLOW = Caller("slow", frozenset({"infer"}), rate=Allowance(3, "min"))
POOR = Caller("poor", frozenset({"infer"}), quota=Allowance(100, "day"))


class Clock:
    """Seconds since 1970, when told."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def refused(limiter: RateLimiter, caller: Caller) -> TooMany:
    with pytest.raises(TooMany) as caught:
        limiter.admit(caller)
    assert caught.value.status == 429
    return caught.value


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    """Nor forward lets anybody in: what nobody sets tells how long ago it was."""
    clock, wall = Clock(), Clock()
    limiter = RateLimiter(LimitsSpec(rate="1/min"), clock, wall)
    caller = Caller("k-1")
    limiter.admit(caller)
    wall.now -= HOUR
    clock.now += 61
    limiter.admit(caller)
    wall.now += 2 * HOUR
    with pytest.raises(TooMany):
        limiter.admit(caller)


def test_a_burst_then_the_rate_and_retry_after_is_true() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock, wall=clock)
    for _ in range(3):
        limiter.admit(SLOW)
    assert refused(limiter, SLOW).retry_after == 20
    limiter.admit(replace(SLOW, id="another"))
    clock.now += 12
    wait = refused(limiter, SLOW).retry_after
    assert wait == 8
    clock.now += wait
    limiter.admit(SLOW)
    assert refused(limiter, SLOW).retry_after == 20


def test_in_the_long_run_the_rate_holds_however_often_one_asks() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock, wall=clock)
    admitted = 0
    for _ in range(3600):
        clock.now += 1
        try:
            limiter.admit(SLOW)
        except TooMany:
            continue
        admitted += 1
    assert 180 <= admitted <= 183


def short(limiter: RateLimiter, caller: Caller, prompt: int, answer: int) -> RequestError:
    with pytest.raises(RequestError) as caught:
        limiter.reserve(caller, prompt, answer)
    return caught.value


def test_each_answer_counts_and_a_refused_request_takes_nothing() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock, wall=clock)
    limiter.admit(SLOW, 2)
    with pytest.raises(TooMany) as caught:
        limiter.admit(SLOW, 2)
    assert caught.value.retry_after == 20
    limiter.admit(SLOW, 1, counted=1)
    limiter.admit(SLOW)
    assert refused(limiter, SLOW).retry_after == 20
    with pytest.raises(RequestError, match="each answer counts") as never:
        limiter.admit(SLOW, 4)  # no time is long enough
    assert (never.value.status, never.value.param) == (400, "n")


def test_a_quota_is_used_up_until_midnight() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock, wall=clock)
    for prompt, answer, taken in ((10, 60, 40), (20, 40, 60)):
        reservation = limiter.reserve(POOR, prompt, answer)
        assert reservation is not None
        reservation.settle(taken)
    error = short(limiter, POOR, 1, 0)
    assert isinstance(error, TooMany)
    assert (error.code, error.retry_after) == ("insufficient_quota", DAY // 2)
    clock.now += error.retry_after
    assert limiter.reserve(POOR, 1, 0)
    never = short(limiter, POOR, 0, 101)
    assert (never.status, never.param) == (400, "max_tokens")


@pytest.mark.parametrize(("counted", "param"), [(81, "max_tokens"), (100, "messages")])
def test_a_guess_refuses_nothing_for_good_but_the_count_does(counted: int, param: str) -> None:
    limiter = RateLimiter(wall=Clock())
    honest = limiter.reserve(POOR, 1000, 20, "messages")
    assert honest is not None
    honest.read(80)
    honest.settle(0)
    large = limiter.reserve(POOR, 20, 20, "messages")
    assert large is not None
    with pytest.raises(RequestError) as caught:
        large.read(counted)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert limiter.reserve(POOR, 80, 20)  # it holds nothing any more


def test_what_was_guessed_too_low_is_refused_while_others_hold_the_rest() -> None:
    limiter = RateLimiter(wall=Clock())
    first, second = (limiter.reserve(POOR, 10, 30) for _ in range(2))
    assert first is not None
    assert second is not None
    first.read(30)
    with pytest.raises(RequestError) as caught:
        second.read(30)
    assert (caught.value.status, isinstance(caught.value, TooMany)) == (429, False)
    first.settle(60)
    late = limiter.reserve(POOR, 10, 30)
    assert late is not None
    with pytest.raises(TooMany):
        late.read(30)


def test_what_runs_has_its_tokens_set_aside_and_gives_back_what_it_does_not_use() -> None:
    limiter = RateLimiter(wall=Clock())
    first, second = (limiter.reserve(POOR, 25, 20) for _ in range(2))
    assert first is not None
    assert second is not None
    waits = short(limiter, POOR, 5, 10)
    assert (waits.status, waits.code) == (429, "insufficient_quota")
    assert not isinstance(waits, TooMany)  # not until midnight: until one of them ends
    first.read(15)  # the prompt was shorter than was feared
    third = limiter.reserve(POOR, 5, 10)
    assert third is not None
    second.settle(30)
    second.settle(45)
    second.read(45)
    assert short(limiter, POOR, 21, 0).status == 429
    assert limiter.reserve(POOR, 20, 0)


def test_a_request_that_comes_at_eleven_and_ends_the_next_day_is_charged_where_it_came() -> None:
    clock = Clock()
    limiter = RateLimiter(clock=clock, wall=clock)
    reservation = limiter.reserve(POOR, 50, 50)
    assert reservation is not None
    clock.now += DAY / 2
    reservation.settle(100)
    assert limiter.reserve(POOR, 50, 50)


def test_defaults_are_for_those_who_have_no_allowance_but_the_operator() -> None:
    limiter = RateLimiter(LimitsSpec(rate="1/min"), Clock())
    for caller in (ANONYMOUS, POOR):
        limiter.admit(caller)
        assert refused(limiter, caller).code == "rate_limit_exceeded"
    for _ in range(3):
        limiter.admit(SLOW)
        limiter.admit(OPERATOR)


def spend(limiter: RateLimiter, tokens: int) -> None:
    reservation = limiter.reserve(POOR, tokens, 0)
    assert reservation is not None
    reservation.settle(tokens)


class Stored:
    """What gateways have saved."""

    def __init__(self) -> None:
        self._spent: dict[RateLimiter, dict[UsageKey, Spent]] = {}

    def exchange(self, limiter: RateLimiter) -> None:
        def save(spent: Mapping[UsageKey, Spent]) -> Usage:
            self._spent.setdefault(limiter, {}).update(spent)
            others = [one for other, one in self._spent.items() if other is not limiter]
            return Counter({p: sum(sum(one.get(p, Spent())) for one in others) for p in PLACES})

        asyncio.run(limiter.exchange(save))


PLACES = [("poor", 20000 * DAY)]


def test_two_gateways_share_a_quota_reservations_and_all_and_an_outage_loses_nothing() -> None:
    clock, stored = Clock(), Stored()

    def outage(_: Mapping[UsageKey, Spent]) -> Usage:
        raise ConnectionError("the database is away")

    one, other = RateLimiter(clock=clock, wall=clock), RateLimiter(clock=clock, wall=clock)
    spend(one, 30)
    with pytest.raises(ConnectionError):
        asyncio.run(one.exchange(outage))
    for limiter in (one, one, other):
        stored.exchange(limiter)
    assert short(other, POOR, 71, 0).status == 429
    running = other.reserve(POOR, 30, 40)
    assert running is not None
    stored.exchange(other)
    stored.exchange(one)
    assert short(one, POOR, 1, 0).status == 429
    running.settle(35)
    stored.exchange(other)
    stored.exchange(one)
    assert short(one, POOR, 36, 0).status == 429
    spend(one, 35)


def test_a_save_that_was_cut_off_is_made_again_and_charges_once() -> None:
    """The case of a gateway that closes while it saves: the thread goes on, and ends after the last
    save that the gateway makes, or before it."""
    saved: list[dict[UsageKey, Spent]] = []
    limiter = RateLimiter(wall=Clock())
    spend(limiter, 30)

    async def main() -> None:
        started, goes_on = threading.Event(), threading.Event()

        def slow(spent: Mapping[UsageKey, Spent]) -> Usage:
            started.set()
            goes_on.wait(10)
            saved.append(dict(spent))
            return Counter()

        saving = asyncio.create_task(limiter.exchange(slow))
        await asyncio.to_thread(started.wait, 10)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        goes_on.set()
        await limiter.exchange(slow)

    asyncio.run(main())
    assert saved == [{PLACES[0]: Spent(30, 0)}] * 2  # totals: the second says nothing new


def test_windows_that_are_over_and_saved_take_no_memory() -> None:
    clock, stored = Clock(), Stored()
    limiter = RateLimiter(clock=clock, wall=clock)
    for _ in range(50):
        spend(limiter, 10)
        limiter.admit(SLOW)
        stored.exchange(limiter)
        clock.now += DAY
    assert len(limiter._used) <= 4
    assert len(limiter._saved) <= 4
    stored.exchange(limiter)
    assert not limiter._next
