"""Rates and quotas by a clock that stands in the test."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.answered import Answered
from orchestrator.edge.allowance import Allowance
from orchestrator.edge.keys import ANONYMOUS, OPERATOR, Caller
from orchestrator.edge.limits import LimitsSpec
from orchestrator.edge.meter import Meter, TooMany, Usage

DAY = 86400
NOON = 20000.5 * DAY
SLOW = Caller("slow", frozenset({"infer"}), rate=Allowance(3, "min"))
POOR = Caller("poor", frozenset({"infer"}), quota=Allowance(100, "day"))


class Clock:
    """Seconds since 1970, when told."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def used(caller: Caller, tokens: int, at: float, **fields: Any) -> Answered:
    return Answered(
        at=datetime.fromtimestamp(at, UTC),
        request="r",
        name=None,
        version="base",
        caller=caller.id,
        status=200,
        error=None,
        prompt_tokens=tokens - 1,
        completion_tokens=1,
        seconds=1.0,
        first_token_seconds=0.1,
        **fields,
    )


def refused(meter: Meter, caller: Caller) -> TooMany:
    with pytest.raises(TooMany) as caught:
        meter.admit(caller)
    assert caught.value.status == 429
    return caught.value


def test_a_burst_then_the_rate_and_retry_after_is_true() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    for _ in range(3):
        meter.admit(SLOW)
    assert refused(meter, SLOW).retry_after == 20
    meter.admit(replace(SLOW, id="another"))
    clock.now += 12
    wait = refused(meter, SLOW).retry_after
    assert wait == 8
    clock.now += wait
    meter.admit(SLOW)
    assert refused(meter, SLOW).retry_after == 20


def test_in_the_long_run_the_rate_holds_however_often_one_asks() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    admitted = 0
    for _ in range(3600):
        clock.now += 1
        try:
            meter.admit(SLOW)
        except TooMany:
            continue
        admitted += 1
    assert 180 <= admitted <= 183


def test_a_quota_is_used_up_until_midnight() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    meter.admit(POOR)
    meter(used(POOR, 99, NOON))
    meter.admit(POOR)
    meter(used(POOR, 5000, NOON, role="shadow"))  # nobody asked for a shadow
    meter.admit(POOR)
    meter(used(POOR, 1, NOON))
    error = refused(meter, POOR)
    assert (error.code, error.retry_after) == ("insufficient_quota", DAY // 2)
    clock.now += error.retry_after
    meter.admit(POOR)


def test_defaults_are_for_those_who_have_no_allowance_but_the_operator() -> None:
    meter = Meter(LimitsSpec(rate="1/min"), Clock())
    for caller in (ANONYMOUS, POOR):
        meter.admit(caller)
        assert refused(meter, caller).code == "rate_limit_exceeded"
    for _ in range(3):
        meter.admit(SLOW)
        meter.admit(OPERATOR)


def exchanging(save: Callable[[Usage], Usage], meter: Meter) -> None:
    asyncio.run(meter.exchange(save))


def test_two_gateways_share_a_quota_and_an_outage_loses_nothing() -> None:
    clock, stored = Clock(), Counter[tuple[str, int]]()

    def save(taken: Usage) -> Usage:
        stored.update(taken)
        return stored.copy()

    def outage(_: Usage) -> Usage:
        raise ConnectionError("the database is away")

    one, other = Meter(clock=clock), Meter(clock=clock)
    for meter in (one, other):
        meter.admit(POOR)
    one(used(POOR, 60, NOON))
    with pytest.raises(ConnectionError):
        exchanging(outage, one)
    exchanging(save, one)
    exchanging(save, one)
    assert sum(stored.values()) == 60
    other(used(POOR, 40, NOON))
    other.admit(POOR)
    exchanging(save, other)
    refused(other, POOR)
    one.admit(POOR)
    exchanging(save, one)
    refused(one, POOR)
    assert list(stored) == [("poor", 20000 * DAY)]
