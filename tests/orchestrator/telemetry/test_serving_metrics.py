"""What the metrics of serving are made of. (That Prometheus reads them: test_serving.)"""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.telemetry.request_record import RequestRecord, steady
from orchestrator.telemetry.series import DURATION, FIRST_TOKEN, OF_ENGINES, OF_REQUESTS, PER_TOKEN
from orchestrator.telemetry.serving_metrics import figures, outcome, times
from workers.engine.protocol import Statistics
from workers.engine.request import TextRequest
from workers.engine.text_engine import TextEngine
from workers.engine.timing import ComputeSpan, SharedPasses, Timing


def answered(**fields: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "at": datetime.now(UTC),
        "came": steady(),
        "request": "r",
        "name": "home",
        "version": "3f9a1b2c3d4e",
        "caller": "k-1",
        "status": 200,
        "error": None,
        "prompt_tokens": 5,
        "completion_tokens": 11,
        "seconds": 3.0,
        "first_token_seconds": 1.0,
    }
    return RequestRecord(**{**values, **fields})


def test_every_series_has_a_name_of_ours_a_meaning_and_few_labels() -> None:
    series = (*OF_REQUESTS, *OF_ENGINES)
    assert len({name for one in series for name in one.exported}) >= len(series)
    for one in series:
        assert one.name.startswith("moetune_")
        assert one.help
        assert one.help.isascii(), "Ray takes no other"
        assert set(one.labels) <= {"name", "version", "role", "outcome", "replica"}


def test_times_are_of_what_was_there() -> None:
    computed = Timing(
        (SharedPasses(frozenset(), ComputeSpan(5, 0.5, 1, 5), ComputeSpan(10, 0.4, 10, 10)),)
    )
    whole = answered(timing=computed)
    assert times(whole) == {DURATION: 3.0, FIRST_TOKEN: 1.0, PER_TOKEN: 0.04}
    short = answered(
        completion_tokens=1, timing=Timing((SharedPasses(frozenset(), computed.prompt),))
    )
    assert times(short) == {DURATION: 3.0, FIRST_TOKEN: 1.0}
    broken = answered(status=500, error="engine_error", timing=computed)
    assert times(broken) == {FIRST_TOKEN: 1.0, PER_TOKEN: 0.04}
    assert times(answered(seconds=99.0, timing=computed))[PER_TOKEN] == 0.04, "a slow reader"
    refused = answered(status=400, error="x", first_token_seconds=None, completion_tokens=0)
    assert times(refused) == {}


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (200, "ok"),
        (400, "refused"),
        (401, "refused"),
        (404, "refused"),
        (413, "refused"),
        (429, "limited"),
        (499, "gone"),
        (500, "failed"),
        (503, "failed"),
        (504, "timeout"),
    ],
)
def test_outcomes_are_few_words(status: int, word: str) -> None:
    assert outcome(status) == word


def test_an_engines_figures_are_means_since_the_last_look() -> None:
    before = Statistics(passes=10, rows=15, tokens=100)
    now = Statistics(2, 3, 1, 0.5, passes=14, rows=25, tokens=160)
    assert list(figures(before, now).values()) == [2, 3, 1, 0.5, 2.5, 15]
    assert list(figures(now, now).values())[-2:] == [0, 0]


def test_a_real_engine_counts_its_passes(engine: TextEngine) -> None:
    async def answer() -> None:
        async for _ in engine.generate(TextRequest("hello", None, 0, max_tokens=6)):
            pass

    before = engine.engine.statistics()
    asyncio.run(answer())
    now = engine.engine.statistics()
    passes = now.passes - before.passes
    assert passes >= 6
    assert passes <= now.rows - before.rows
    assert now.tokens - before.tokens >= len("hello") + 5
    assert (now.running, now.waiting, now.reserved) == (0, 0, 0)
