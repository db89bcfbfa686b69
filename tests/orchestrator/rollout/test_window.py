"""What counts, and what can be said of it."""

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.config.rollout import GuardSpec
from orchestrator.rollout.window import Window, Windows, counts
from tests.orchestrator.rollout.traffic import NOW, ago, answered, computed, failed, observed
from workers.engine.routing.types import RequestRouting


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 499])
def test_errors_of_clients_never_count(status: int) -> None:
    assert not counts(answered("a", status=status, error="invalid_request"))


@pytest.mark.parametrize(
    "error", ["unavailable", "engine_stopped", "queue_full", "timeout", "internal_error", "closing"]
)
def test_what_no_version_can_help_does_not_count(error: str) -> None:
    assert not counts(failed("a", error, status=503))


@pytest.mark.parametrize("one", [answered("a"), failed("a"), failed("a", "non_finite")])
def test_answers_and_its_own_failures_count(one: Any) -> None:
    assert counts(one)


def test_an_answer_that_is_cut_off_only_tells_what_was_computed() -> None:
    windows = Windows(GuardSpec())
    for error in ("timeout", "client_closed_request", "invalid_schema"):
        windows(failed("a", error))
        windows(failed("a", error, timing=None))
    window = windows.of("home", "a", ago(10), NOW)
    assert (window.requests, window.error_rate, len(window.seen)) == (0, 0, 3)


def test_who_pins_a_version_says_nothing_of_it() -> None:
    windows = Windows(GuardSpec())
    observed(windows, (30, answered("a", role="pinned")), (30, failed("a", role="pinned")))
    assert not windows.of("home", "a", ago(10), NOW).seen
    assert not windows.others("home", "b", ago(10), NOW).seen


def test_windows_are_bounded_in_number_and_time() -> None:
    windows = Windows(GuardSpec(window_requests=50, window_seconds=100))
    observed(windows, (80, answered("a", at=ago(10))), (20, answered("b", at=ago(150))))
    assert windows.of("home", "a", ago(1000), NOW).requests == 50
    assert windows.of("home", "b", ago(1000), NOW).requests == 0
    assert windows.of("home", "b", ago(1000), ago(120)).requests == 20
    assert windows.of("home", "a", ago(5), NOW).requests == 0
    assert windows.of("other", "a", ago(1000), NOW).requests == 0


def test_texts_and_routings_are_not_kept() -> None:
    windows = Windows(GuardSpec())
    windows(answered("a", prompt="secret", answer="secret", routing=RequestRouting(1, ())))
    [kept] = windows.of("home", "a", ago(10), NOW).seen
    assert (kept.prompt, kept.answer, kept.routing) == (None, None, None)


def test_others_are_all_but_the_version_and_shadows() -> None:
    windows = Windows(GuardSpec())
    observed(
        windows,
        (1, answered("a")),
        (2, answered("b", role="canary")),
        (4, answered("c", role="shadow")),
        (8, answered("a", name="garden")),
        (16, answered("base", name=None)),
    )
    assert windows.others("home", "a", ago(10), NOW).requests == 2 + 8 + 16
    assert windows.elsewhere("home", ago(10), NOW).requests == 8 + 16
    assert windows.of("home", "c", ago(10), NOW).requests == 0
    assert windows.shadow("home", "c").requests == 4


def test_versions_that_nobody_is_concerned_with_are_forgotten() -> None:
    windows = Windows(GuardSpec())
    observed(windows, (1, answered("a")), (1, answered("b")), (1, answered("base", name=None)))
    windows.forget([("home", "b")])
    assert windows.of("home", "a", ago(10), NOW).requests == 0
    assert windows.of("home", "b", ago(10), NOW).requests == 1
    assert windows.others("home", "b", ago(10), NOW).requests == 1


def test_the_95th_percentile() -> None:
    """Of what was computed: neither queues nor slow readers are in it."""
    window = Window(tuple(answered("a", timing=computed(n), seconds=99.0) for n in range(1, 101)))
    assert window.p95 == pytest.approx(9.5)
    assert Window((*window.seen, failed("a", timing=computed(999)))).p95 == window.p95


def test_an_empty_window_says_nothing() -> None:
    window = Window(())
    assert (window.error_rate, window.p95, window.tokens) == (0, 0, 0)
    assert window.figures()["requests"] == 0


def test_the_present_moment_is_the_end() -> None:
    windows = Windows(GuardSpec())
    windows(answered("a", at=NOW))
    assert windows.of("home", "a", ago(1), NOW).requests == 0
    assert windows.of("home", "a", ago(1), NOW + timedelta(microseconds=1)).requests == 1
