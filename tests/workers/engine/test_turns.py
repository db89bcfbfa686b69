"""Tenants take turns, and pay for what they had computed."""

import asyncio
import time

import pytest

from workers.engine.request import RequestError
from workers.engine.turns import AHEAD, SHARE, Spending, Turns


def test_one_tenants_many_do_not_stand_before_anothers_one() -> None:
    async def ask() -> list[str]:
        turns, done = Turns(most=10), []
        busy = asyncio.Semaphore(1)

        async def work(tenant: str) -> None:
            async with turns.of(tenant), busy:
                await asyncio.sleep(0.01)
                done.append(tenant)

        await asyncio.gather(*(work("many") for _ in range(5)), work("one"))
        return done

    assert asyncio.run(ask()).index("one") <= 1


def test_too_many_of_one_tenant_are_429_and_nobodys_place_is_lost() -> None:
    async def ask() -> None:
        turns, begun = Turns(most=2), asyncio.Event()

        async def hold() -> None:
            async with turns.of("a"):
                begun.set()
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(hold()) for _ in range(2)]
        await begun.wait()
        with pytest.raises(RequestError) as caught:
            async with turns.of("a"):
                pass
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        async with turns.of("b"):
            pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with turns.of("a"):
            pass

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_who_rests_lets_others_go_first() -> None:
    async def ask() -> tuple[list[str], float]:
        turns, done, begun = Turns(most=10), [], time.monotonic()

        async def work(tenant: str) -> None:
            async with turns.of(tenant):
                done.append(tenant)

        turns.rest("busy", 0.2)
        await asyncio.gather(work("busy"), work("other"))
        return done, time.monotonic() - begun

    done, seconds = asyncio.run(ask())
    assert done == ["other", "busy"]
    assert seconds >= 0.2


def test_who_took_too_much_waits_until_it_is_paid_off() -> None:
    now = 0.0
    spending = Spending(lambda: now)
    spending.charge("a", SHARE * AHEAD)
    spending.check("a")  # ahead, and not too far
    spending.charge("a", SHARE * 5)
    with pytest.raises(RequestError) as caught:
        spending.check("a")
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    spending.check("b")
    now = 5.0
    spending.check("a")
