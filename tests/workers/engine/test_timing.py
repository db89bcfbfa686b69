"""What an engine says it has computed on an answer, and what it does not count in."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits, Piece, Sampling
from workers.engine.timing import ComputeSpan, PassClock, Passing, Timer, Timing, account
from workers.models.base import load_base

LONG = tuple(range(7, 107))


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Iterator[ContinuousEngine]:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    engine = ContinuousEngine(base, Limits(max_batch_tokens=48, cache_tokens=640))
    yield engine
    engine.close()


def answered(
    engine: ContinuousEngine, *prompts: tuple[int, ...], rest: float = 0.0, **sampling: object
) -> list[list[Piece]]:
    """All at once; the reader rests after every piece."""
    asked = Sampling(**{"max_tokens": 12, "temperature": 0.0, **sampling})  # type: ignore[arg-type]

    async def one(prompt: tuple[int, ...]) -> list[Piece]:
        found = []
        async for piece in engine.generate(prompt, None, asked):
            found.append(piece)
            await asyncio.sleep(rest)
        return found

    async def main() -> list[list[Piece]]:
        return await asyncio.gather(*map(one, prompts))

    return asyncio.run(asyncio.wait_for(main(), 60))


def timing(pieces: list[Piece]) -> Timing:
    last = pieces[-1].timing
    assert last is not None
    return last


def test_what_was_computed_is_told_at_first_and_at_last(engine: ContinuousEngine) -> None:
    [pieces] = answered(engine, LONG)
    prompt, answer = timing(pieces).prompt, timing(pieces).answer
    drawn = sum(len(piece.tokens) for piece in pieces)
    assert (prompt.tokens, prompt.passes) == (100, 3), "48 tokens a pass"
    assert (answer.tokens, answer.passes, answer.load) == (drawn - 1, drawn - 1, 1)
    assert prompt.seconds > 0
    assert answer.seconds > 0
    begins, first = pieces[:2]
    assert (begins.tokens, begins.timing) == ((), None)
    assert first.timing is not None
    assert first.timing.prompt.seconds <= prompt.seconds
    told = [one.timing.answer.tokens for one in pieces if one.timing]
    assert told[-1] < 2 * told[-2] + 2, "of an answer that is cut off, half at least"


def test_company_is_told_since_one_waits_for_it(engine: ContinuousEngine) -> None:
    first, second = answered(engine, tuple(range(110, 120)), tuple(range(120, 130)))
    assert timing(first).answer.load > 1
    assert timing(second).answer.load > 1


def test_what_lay_in_the_cache_is_not_counted(engine: ContinuousEngine) -> None:
    prompt = tuple(range(7, 7 + 96))
    answered(engine, prompt)
    [again] = answered(engine, (*prompt, 9))
    assert timing(again).prompt.tokens < 96


def test_a_slow_reader_and_a_wait_for_room_are_not_counted(engine: ContinuousEngine) -> None:
    [pieces] = answered(engine, (5, 6, 7))
    rest, begun = timing(pieces).seconds, time.perf_counter()
    [pieces] = answered(engine, (5, 6, 7), rest=rest)
    assert timing(pieces).seconds < (time.perf_counter() - begun) / 2
    begun = time.perf_counter()
    crowd = [tuple(range(at, at + 160)) for at in range(8)]  # more than the cache has room for
    told = answered(engine, *crowd, max_tokens=80)
    seconds = [timing(one).seconds for one in told]
    assert min(seconds) < (time.perf_counter() - begun) / 2


def test_what_a_request_wants_to_be_told_is_not_counted(
    engine: ContinuousEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token's routing, a schema's mask: they come after the pass."""
    end, pauses = engine._capture.end, 0.2

    def slow(passed: bool) -> None:
        time.sleep(pauses)
        end(passed)

    monkeypatch.setattr(engine._capture, "end", slow)
    [pieces] = answered(engine, (5, 6, 8), max_tokens=5)
    assert 0 < timing(pieces).seconds < 5 * pauses / 2


def test_passes_of_a_prompt_and_of_its_answer_are_told_apart() -> None:
    timer, other, clock = Timer(), Timer(), PassClock()
    for tokens, draws in ((8, False), (4, True), (1, True), (1, True)):
        clock.start([Passing(timer, "a", tokens, draws), Passing(other, None, 2, draws=False)])
        clock.stop()
    clock.stop()  # of no pass
    prompt, answer = timer.timing.prompt, timer.timing.answer
    assert (prompt.tokens, prompt.passes, prompt.load) == (12, 2, 8)
    assert (answer.tokens, answer.passes, answer.load) == (2, 2, 3)
    assert timer.timing.seconds == pytest.approx(prompt.seconds + answer.seconds)
    assert ComputeSpan().load == 0


def test_passes_are_told_apart_by_the_other_adapters_in_them() -> None:
    """The base is no adapter, and no adapter is another of itself."""
    one, same, other, base = (Timer() for _ in range(4))
    row = partial(Passing, tokens=1, draws=True)
    account([row(one, "a"), row(same, "a"), row(base, None)], 1.0)
    account([row(one, "a"), row(other, "b")], 2.0)
    account([row(one, "a"), row(other, "b")], 4.0)
    parts = {part.others: part for part in one.timing.parts}
    assert parts.keys() == {frozenset(), frozenset("b")}
    assert parts[frozenset()].prompt == ComputeSpan(1, 1.0, 1, 3)
    assert parts[frozenset("b")].answer == ComputeSpan(2, 6.0, 2, 4)
    assert [part.others for part in other.timing.parts] == [frozenset("a")]
    assert [part.others for part in base.timing.parts] == [frozenset("a")]
