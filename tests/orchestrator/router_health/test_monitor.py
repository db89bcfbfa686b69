"""The observer: what it says of real routers, what it forgets, and where its reference is from."""

import math
import threading

import numpy as np
import pytest

from orchestrator.config.health import HealthSpec
from orchestrator.router_health.layout import Places
from orchestrator.router_health.monitor import RouterHealth
from orchestrator.router_health.window import GROUPS, RoutingWindow
from tests.orchestrator.traffic import Trained, answered
from workers.adapter.routing_sample import CACHE_PAGE, RoutingSample
from workers.config.base import InputError
from workers.engine.request import RequestError
from workers.engine.routing.types import LayerRouting, RequestRouting

VERSION = "3f9a1b2c3d4e"
SPEC = HealthSpec(window=50, windows=4)


def monitored(trained: Trained, spec: HealthSpec = SPEC) -> RouterHealth:
    return RouterHealth(spec, lambda _: trained.manifest.routing_sample)


def feed(monitor: RouterHealth, requests: list[RequestRouting], **fields: object) -> None:
    for one in requests:
        monitor(answered(one, **fields))


def test_figures_of_a_layer_are_those_of_its_requests(trained: Trained) -> None:
    monitor, requests = monitored(trained), trained.home[:30]
    feed(monitor, requests)
    [version] = monitor.health("home").versions
    assert (version.version, version.requests) == (VERSION, 30)
    assert version.tokens == sum(one.tokens for one in requests)
    for place, layer in enumerate(version.layers):
        load = np.sum([one.layers[place].load for one in requests], axis=0)
        share = load / load.sum()
        assert layer.layer == requests[0].layers[place].layer
        assert layer.load == pytest.approx(share.tolist())
        assert layer.cv == pytest.approx(share.std() / share.mean())
        assert layer.entropy == pytest.approx(-(share * np.log(share)).sum() / math.log(4))
        margin = sum(one.layers[place].margin for one in requests) / version.tokens
        assert layer.margin == pytest.approx(margin)
        assert 0 < layer.doubt <= 1
        assert sum(layer.weight) == pytest.approx(1)


def test_an_expert_that_gets_nothing_is_dead() -> None:
    monitor = RouterHealth()
    place = LayerRouting("layers.0.mlp", (0, 90, 10, 1), (0.0, 80.0, 9.0, 0.5), 3.0, 40.0)
    feed(monitor, [RequestRouting(101, (place,))])
    [layer] = monitor.health("home").versions[0].layers
    assert layer.dead == (0, 3)
    assert layer.cv > 1


def test_another_domain_is_first_suspect_and_then_drift(trained: Trained) -> None:
    monitor = monitored(trained)
    assert monitor.drift(VERSION) is None, "nothing was answered yet"
    feed(monitor, trained.home[:49])
    assert monitor.drift(VERSION) is None, "no whole window"
    feed(monitor, trained.home[49:100])
    steady = monitor.drift(VERSION)
    assert steady is not None
    assert (steady.state, steady.sustained, steady.judged) == ("steady", 0, 2)
    assert steady.reference == "training"
    feed(monitor, trained.clinic[:50])
    suspect = monitor.drift(VERSION)
    assert suspect is not None
    assert (suspect.state, suspect.sustained, suspect.drifted) == ("suspect", 1, False)
    assert suspect.score is not None
    assert suspect.score > 1
    feed(monitor, trained.clinic[50:100])
    drifted = monitor.drift(VERSION)
    assert drifted is not None
    assert (drifted.state, drifted.sustained, drifted.drifted) == ("drifted", 2, True)
    assert "unlike the validation rows" in drifted.why
    feed(monitor, trained.home[100:150])
    calm = monitor.drift(VERSION)
    assert calm is not None
    assert (calm.state, calm.sustained) == ("steady", 0)


def test_who_pins_a_version_is_not_listened_to(trained: Trained) -> None:
    monitor = monitored(trained)
    feed(monitor, trained.home[:100])
    feed(monitor, trained.clinic[:100], role="pinned")
    verdict = monitor.drift(VERSION)
    assert verdict is not None
    assert (verdict.state, verdict.judged) == ("steady", 2)
    assert monitor.health("home").versions[0].requests == 100


def test_the_busiest_user_of_what_has_drifted_is_told(trained: Trained) -> None:
    monitor = monitored(trained)
    for number, routing in enumerate(trained.clinic[:150]):
        lonely = number >= 50 and number % 2
        monitor(answered(routing, user="one" if lonely else f"user {number}"))
    verdict = monitor.drift(VERSION)
    assert verdict is not None
    assert (verdict.drifted, verdict.sustained) == (True, 3)
    assert verdict.busiest == pytest.approx(50 / 150)


@pytest.mark.parametrize("sample", [None, RoutingSample.of([{"layers.7.mlp": [1, 2]}])])
def test_without_a_sample_the_first_requests_are_the_reference(
    trained: Trained, sample: RoutingSample | None
) -> None:
    """Manifests of former times have none; one of other places is none for this adapter."""
    monitor = RouterHealth(SPEC.model_copy(update={"reference_requests": 120}), lambda _: sample)
    feed(monitor, trained.home[:100])
    assert "first 120 requests" in monitor.health("home").versions[0].drift.why
    feed(monitor, trained.home[100:300])
    verdict = monitor.drift(VERSION)
    assert verdict is not None
    assert (verdict.reference, verdict.state) == ("served", "steady")
    assert verdict.judged == 3, "the windows that the reference is of are not judged"
    feed(monitor, trained.clinic[:100])
    verdict = monitor.drift(VERSION)
    assert verdict is not None
    assert verdict.drifted
    assert "first requests served" in verdict.why


def test_a_reference_from_training_alone_may_be_wanted(trained: Trained) -> None:
    monitor = RouterHealth(SPEC.model_copy(update={"reference": "training"}))
    feed(monitor, trained.home[:300])
    assert monitor.drift(VERSION) is None
    assert "manifest" in monitor.health("home").versions[0].drift.why


def test_a_registry_that_cannot_be_read_is_asked_again(trained: Trained) -> None:
    broken = [True]

    def samples(_: str) -> RoutingSample | None:
        if broken:
            raise InputError("the store is away")
        return trained.manifest.routing_sample

    monitor = RouterHealth(SPEC, samples)
    feed(monitor, trained.home[:60])
    assert monitor.drift(VERSION) is None
    broken.clear()
    assert monitor.drift(VERSION) is not None


def test_requests_that_were_mostly_in_the_cache_are_not_compared(trained: Trained) -> None:
    """Of one that repeats another's prompt, its answer alone is left: that is no drift."""
    monitor, pages = monitored(trained), 3 * CACHE_PAGE
    for known, repeated in zip(trained.home[:60], trained.clinic[:60], strict=True):
        monitor(answered(known))
        monitor(answered(repeated, prompt_tokens=repeated.tokens - 9 + pages))
    verdict = monitor.drift(VERSION)
    assert verdict is not None
    assert (verdict.state, verdict.judged) == ("steady", 1), "two windows hold one to compare"
    assert monitor.health("home").versions[0].requests == 120, "but health is of all"


def test_memory_is_bounded(trained: Trained) -> None:
    monitor = monitored(trained, HealthSpec(window=10, windows=3, versions=2))
    for version in ("a" * 12, "b" * 12, "c" * 12):
        feed(monitor, trained.home[:95], version=version)
    told = monitor.health("home").versions
    assert [one.version for one in told] == ["b" * 12, "c" * 12], "the oldest made room"
    assert {one.requests for one in told} == {35}, "three whole windows and the open one"
    tally = RoutingWindow(Places.of(trained.home[0]))
    for cached, routing in enumerate(trained.home[:30]):
        tally.add(routing, cached * CACHE_PAGE)
    assert len(tally.votes) == GROUPS


def test_names_find_their_versions(trained: Trained) -> None:
    monitor = monitored(trained)
    feed(monitor, trained.home[:5], name="garden", version="a" * 12)
    feed(monitor, trained.home[:5], name="home", version="a" * 12)
    feed(monitor, trained.home[:5], name="home", version="b" * 12, role="shadow")
    assert [one.version for one in monitor.health("home").versions] == ["a" * 12, "b" * 12]
    assert [one.version for one in monitor.health(f"home@{'b' * 12}").versions] == ["b" * 12]
    assert len(monitor.everything()) == 3
    for name in ("house", "home@0000"):
        with pytest.raises(RequestError) as caught:
            monitor.health(name)
        assert caught.value.status == 404


def test_what_is_no_routing_changes_nothing(trained: Trained) -> None:
    monitor = monitored(trained)
    monitor(answered(None))
    monitor(answered(RequestRouting(0, ())))
    with pytest.raises(RequestError):
        monitor.health("home")
    feed(monitor, trained.home[:5])
    monitor(answered(RequestRouting(3, (LayerRouting("layers.9.mlp", (1, 2), (1, 2), 1.0, 1.0),))))
    assert monitor.health("home").versions[0].requests == 5, "other places are no such adapter"


def test_many_threads_may_count_and_read(trained: Trained) -> None:
    monitor, threads = monitored(trained), 4
    errors: list[BaseException] = []

    def work() -> None:
        try:
            feed(monitor, trained.home[:150])
            monitor.health("home")
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=60)
    assert not errors
    judge_history = monitor._judges[VERSION].history
    assert judge_history.requests == 150 * threads
