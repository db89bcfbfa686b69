"""Whose turn it is among tenants, and what one tenant's crowd does to another on a real engine."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from workers.config.model import ModelSpec
from workers.engine import room
from workers.engine.engine import ContinuousEngine
from workers.engine.fairness import REMEMBERED, Accounts, Ledger, gives_way
from workers.engine.request import AdapterRef, Asker, Limits, RequestError, Sampling
from workers.engine.sequence import QUANTUM, TokenSequence
from workers.models.base import load_base

LIMITS = Limits(max_batch_tokens=64, cache_tokens=480, max_new_tokens=400, max_queued=8)
PROMPT = tuple(range(20, 60))
LONG = Sampling(max_tokens=400, temperature=0.0)
SHORT = Sampling(max_tokens=8, temperature=0.0)
FILLING = Sampling(max_tokens=111, temperature=0.0)  # three of them fill the cache


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[ContinuousEngine]:
    """Its cache holds one long answer, or several short ones, and not one beside the other."""
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    engine = ContinuousEngine(base, LIMITS)
    yield engine
    engine.close()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def asked(number: int, tenant: str, user: str = "", size: int = 100) -> TokenSequence:
    return TokenSequence(
        number=number,
        prompt=(7,) * (size - 8),
        slot=None,
        asker=Asker(tenant, user),
        sampling=SHORT,
        tokens=[],
    )


def served(crowd: list[TokenSequence], count: int, random: Random) -> Counter[str]:
    """Tokens by tenant after so many requests, two at a time, each of less than it promised."""
    ledger, waiting, got = Ledger(), list(crowd), Counter[str]()
    running: list[TokenSequence] = []
    for one in waiting:
        ledger.enter(one)
    for _ in range(count):
        first = min(waiting, key=ledger.turn)
        waiting.remove(first)
        ledger.promise(first, first.size)
        running.append(first)
        if len(running) == 2:
            done = running.pop(0)
            done.computed = random.randrange(done.size // 2, done.size)
            got[done.asker.tenant] += done.computed
            ledger.leave(done)
    return got


def test_those_who_wait_get_the_same_number_of_tokens_however_many_requests_they_have() -> None:
    async def main() -> Counter[str]:
        crowd = [asked(n, "many") for n in range(300)]
        crowd += [asked(300 + n, "few", size=250) for n in range(60)]
        crowd += [asked(400 + n, "third", size=30) for n in range(300)]
        return served(crowd, 180, Random(3))

    got = run(main())
    assert max(got.values()) - min(got.values()) <= 2 * 250  # two requests of the largest


def test_users_of_one_tenant_share_its_part_and_no_other() -> None:
    async def main() -> tuple[Counter[str], list[TokenSequence]]:
        crowd = [asked(n, "a", f"user {n % 3}") for n in range(90)]
        crowd += [asked(100 + n, "b") for n in range(90)]
        return served(crowd, 60, Random(4)), [one for one in crowd if one.computed]

    got, done = run(main())
    assert abs(got["a"] - got["b"]) <= 200
    users = Counter[str]()
    for one in done:
        users[one.asker.user] += one.computed
    of_a = [users[f"user {n}"] for n in range(3)]
    assert max(of_a) - min(of_a) <= 200
    assert users[""] > 2 * max(of_a)


def test_who_was_away_has_saved_nothing_and_who_was_ahead_stays_so() -> None:
    accounts = Accounts()
    accounts.enter("busy")
    accounts["busy"].served += 1000
    accounts.enter("late")
    assert accounts["late"].served == 1000
    accounts["late"].served += 500
    accounts.leave("late")
    accounts.enter("late")
    assert accounts["late"].served == 1500
    accounts.leave("late")
    accounts["busy"].served += 900
    accounts.enter("late")
    assert accounts["late"].served == 1900
    for id in ("late", "busy"):
        accounts.leave(id)
    accounts.enter("late")
    assert accounts["late"].served == 0  # nobody was there: all are alike


def test_a_tenant_that_invents_users_fills_no_memory() -> None:
    accounts = Accounts()
    accounts.enter("waits")
    for n in range(3 * REMEMBERED):
        accounts.enter(str(n))
        accounts[str(n)].served += 10
        accounts.leave(str(n))
    assert len(accounts._by_id) <= REMEMBERED + 1


def test_what_was_computed_is_counted_once_whatever_happens_to_a_request() -> None:
    async def main() -> None:
        ledger, one, other = Ledger(), asked(0, "a"), asked(1, "b")
        ledger.enter(one)
        ledger.enter(other)
        ledger.promise(one, 100)
        assert ledger.tenants["a"].level == 100
        one.computed = 30
        ledger.promise(one, 0)  # taken back
        assert (ledger.tenants["a"].served, ledger.tenants["a"].level) == (30, 30)
        ledger.promise(one, 100)
        one.computed = 180  # with what had to be read again
        ledger.leave(one)
        ledger.leave(one)
        assert (ledger.tenants["a"].served, ledger.tenants["a"].promised) == (180, 0)

    run(main())


def test_in_a_full_queue_the_latest_of_the_largest_crowd_gives_way() -> None:
    async def main() -> None:
        crowd = [asked(n, "a", f"user {n % 2}") for n in range(5)]
        other = asked(9, "b")
        assert gives_way([*crowd, other], asked(10, "c")) is crowd[4]
        assert gives_way([*crowd, other], asked(10, "a", "user 0")) is None
        assert gives_way([*crowd, other], asked(10, "a", "user 2")) is crowd[4]
        crowd[4].tokens.append(1)
        assert gives_way([*crowd, other], asked(10, "c")) is crowd[2]
        few = [asked(n, tenant) for n, tenant in enumerate("abcd")]
        assert gives_way(few, asked(10, "e")) is None

    run(main())


async def answer(
    engine: ContinuousEngine,
    tenant: str,
    sampling: Sampling,
    start: int = 0,
    prompt: tuple[int, ...] = PROMPT,
) -> list[int]:
    pieces = engine.generate((7 + start, *prompt), None, sampling, asker=Asker(tenant))
    return [token async for piece in pieces for token in piece.tokens]


def test_a_crowd_of_one_key_holds_nobody_up_and_its_answers_are_what_they_were(
    engine: ContinuousEngine,
) -> None:
    """The crowd fills cache and queue. Another key's request is answered while the crowd's first
    runs on; what was taken back for it ends with the same tokens."""

    async def main() -> None:
        sampled = LONG.model_copy(update={"temperature": 1.0, "seed": 5, "logprobs": 1})
        alone = [await answer(engine, "crowd", s) for s in (LONG, sampled)]
        crowd = [
            asyncio.create_task(answer(engine, "crowd", (LONG, sampled)[n % 2])) for n in range(9)
        ]
        while engine.statistics().waiting < 8:
            await asyncio.sleep(0.01)
        for turn in range(3):
            assert len(await answer(engine, "victim", SHORT, start=turn)) == 8
            assert not any(one.done() and one.exception() is None for one in crowd)
        answers = await asyncio.gather(*crowd, return_exceptions=True)
        refused = [one for one in answers if isinstance(one, RequestError)]
        assert {(error.status, error.code) for error in refused} <= {(429, "queue_full")}
        assert len(refused) <= 3
        for n, told in enumerate(answers):
            assert isinstance(told, RequestError) or told == alone[n % 2]
        assert not isinstance(answers[0], RequestError)

    run(main())


def test_a_full_queue_of_one_key_is_no_429_to_another(engine: ContinuousEngine) -> None:
    async def main() -> None:
        crowd = [asyncio.create_task(answer(engine, "crowd", LONG)) for _ in range(9)]
        while engine.statistics().waiting < 8:
            await asyncio.sleep(0.01)
        with pytest.raises(RequestError, match="too many requests wait"):
            await answer(engine, "crowd", SHORT)
        long = asyncio.create_task(answer(engine, "victim", LONG, start=1))
        with pytest.raises(RequestError, match="too many requests wait"):
            await crowd[-1]  # the latest made room
        for one in crowd[1:]:
            one.cancel()
        assert len(await long) == 400
        await asyncio.gather(*crowd, return_exceptions=True)

    run(main())


def test_many_short_requests_take_long_ones_back_once(
    engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of the crowd fill the cache; one of them gives way to the first short request, and its
    room waits for the others."""
    taken, take_back = [], engine._loop._take_back

    def counted(sequence: TokenSequence) -> None:
        taken.append(sequence)
        take_back(sequence)

    monkeypatch.setattr(engine._loop, "_take_back", counted)

    async def main() -> None:
        alone = await answer(engine, "crowd", FILLING)
        crowd = [asyncio.create_task(answer(engine, "crowd", FILLING)) for _ in range(5)]
        while engine.statistics().waiting < 2:
            await asyncio.sleep(0.01)
        for turn in range(4):
            assert len(await answer(engine, "victim", SHORT, start=turn)) == 8
        assert len(taken) <= 2
        assert await asyncio.gather(*crowd) == [alone] * 5

    run(main())


def test_nothing_is_taken_back_before_it_has_got_a_quantum_of_tokens() -> None:
    async def main() -> None:
        cache = room.Room(480, 8)
        running = [asked(n, "crowd", size=160) for n in range(3)]
        newcomer, tenants = asked(9, "victim", size=60), {"crowd", "victim"}
        for one in running:
            one.tokens += [5] * 40
            one.known = 40  # when it was handed over once more
            assert cache.givers(newcomer, running, tenants) is None
        running[1].tokens += [5] * QUANTUM
        assert cache.givers(newcomer, running, tenants) == [running[1]]
        running[2].tokens += [5] * QUANTUM
        assert cache.givers(newcomer, running, tenants) == [running[2]]

    run(main())


def test_a_request_larger_than_its_share_is_answered_beside_a_crowd_of_short_ones(
    engine: ContinuousEngine,
) -> None:
    """Whenever it has come to run, the next of the crowd has a claim to its room."""
    large, short = (LONG.model_copy(update={"max_tokens": most}) for most in (40, 50))
    prompt, over, answers = (PROMPT * 7)[:270], asyncio.Event(), list[list[int]]()

    async def asks(start: int) -> None:
        while not over.is_set() and len(answers) < 60:
            answers.append(await answer(engine, "crowd", short, start))

    async def main() -> None:
        alone = await answer(engine, "large", large, prompt=prompt)
        crowd = [asyncio.create_task(asks(start)) for start in range(6)]
        while not engine.statistics().waiting:
            await asyncio.sleep(0.01)
        told = await answer(engine, "large", large, prompt=prompt)
        over.set()
        await asyncio.gather(*crowd)
        assert told == alone
        assert len(answers) < 60

    run(main())


def test_what_waits_in_vain_for_a_tenant_goes_to_the_next_though_nothing_ends(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long answers in a larger cache: this process must see them run, however busy the machine."""
    monkeypatch.setattr(room, "RETURNS", 0.02)
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    limits = Limits(max_batch_tokens=64, cache_tokens=1440, max_new_tokens=440, max_queued=8)
    filling = Sampling(max_tokens=435, temperature=0.0)

    async def main(engine: ContinuousEngine) -> None:
        crowd = [asyncio.create_task(answer(engine, "crowd", filling)) for _ in range(3)]
        while engine.statistics().running < 3:
            assert not any(one.done() for one in crowd)
            await asyncio.sleep(0.001)
        await answer(engine, "victim", SHORT)
        while engine.statistics().waiting:
            await asyncio.sleep(0.001)
        assert not any(one.done() for one in crowd)
        await asyncio.gather(*crowd)

    engine = ContinuousEngine(base, limits)
    run(main(engine))
    engine.close()


def test_an_answer_by_a_schema_goes_on_where_it_was_taken_back(engine: ContinuousEngine) -> None:
    schema = '{"type": "string", "minLength": 120, "maxLength": 120, "pattern": "^[a-z]*$"}'
    asked = LONG.model_copy(update={"json_schema": schema, "temperature": 1.0, "seed": 3})

    async def main() -> None:
        alone = await answer(engine, "crowd", asked)
        crowd = asyncio.create_task(answer(engine, "crowd", asked))
        while not engine.statistics().running:
            await asyncio.sleep(0.01)
        for turn in range(4):
            await answer(engine, "victim", SHORT, start=turn)
        assert await crowd == alone

    run(main())


def test_the_routing_of_every_token_is_told_after_it_was_taken_back(
    engine: ContinuousEngine, make_adapter: Callable[..., Path]
) -> None:
    adapter = AdapterRef("home@1", str(make_adapter(85)))
    asked = LONG.model_copy(update={"by_token": True})

    async def routed() -> Any:
        pieces = engine.generate(PROMPT, adapter, asked, asker=Asker("crowd"))
        return [piece async for piece in pieces][-1].routing

    async def main() -> None:
        alone = await routed()
        crowd = asyncio.create_task(routed())
        while not engine.statistics().running:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await answer(engine, "victim", SHORT)
        told = await crowd
        assert told.tokens == len(told.by_token) == alone.tokens
        assert [layer.load for layer in told.layers] == [layer.load for layer in alone.layers]

    run(main())
