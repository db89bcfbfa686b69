"""How a gateway follows the registry, over a real engine in this process."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.disk.deletion import delete_name, delete_version
from orchestrator.registry.log import Decision, append
from orchestrator.registry.models import Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import abort, promote, rollback
from orchestrator.registry.registry import Registry
from orchestrator.replicas.golden import Golden
from orchestrator.replicas.readiness import Acknowledged, TwoPhases, acknowledge
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.rollout.kept import keep_all
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import AdapterRef, Limits, RequestError, TextRequest
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

GOLDEN = Golden("hello", 6)


class Fleet:
    """Replicas in this process: engines with a base of their own each."""

    def __init__(self, engines: list[TextEngine]) -> None:
        self.engines = engines

    async def load(self, adapter: AdapterRef) -> None:
        for engine in self.engines:
            await engine.load(adapter)

    async def unload(self, slot: str) -> None:
        for engine in self.engines:
            await engine.unload(slot)

    async def keep(self, slots: Collection[str]) -> None:
        for engine in self.engines:
            await engine.keep(slots)

    async def check(self, adapter: AdapterRef, golden: Golden) -> list[Acknowledged]:
        return [await acknowledge(engine, adapter, golden) for engine in self.engines]

    @property
    def loaded(self) -> set[str]:
        return {slot for engine in self.engines for slot in engine.engine.loaded()}


@pytest.fixture(scope="module")
def engines(tiny_model_dir: Path) -> Iterator[list[TextEngine]]:
    limits = Limits(max_batch_tokens=64, cache_tokens=256, max_queued=2)
    made = []
    for _ in range(2):
        base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
        made.append(TextEngine(ContinuousEngine(base, limits), base.tokenizer))
    yield made
    for engine in made:
        engine.engine.close()


@pytest.fixture
def fleet(engines: list[TextEngine]) -> Fleet:
    """With nothing loaded."""
    for engine in engines:
        for slot in engine.engine.loaded():
            engine.engine.unload(slot)
    return Fleet(engines)


@pytest.fixture(scope="module")
def folders(make_adapter: Callable[..., Path]) -> list[Path]:
    return [make_adapter(seed) for seed in range(51, 56)]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)


@pytest.fixture
def versions(registry: Registry, folders: list[Path]) -> list[Version]:
    return [registry.register("s", trial, folder, {}) for trial, folder in enumerate(folders)]


@pytest.fixture
def put(registry: Registry, versions: list[Version]) -> Callable[..., None]:
    def promoted(number: int, name: str = "home", **how: Any) -> None:
        promote(
            registry,
            versions[number],
            name,
            actor="test",
            metric="validation/loss",
            reason="test",
            force=True,
            stage=stage(**how),
        )

    return promoted


def follow(registry: Registry, fleet: Fleet, load: Any = None, room: int = 8) -> ModelCatalog:
    ready = TwoPhases(fleet, GOLDEN)
    return ModelCatalog(registry, "tiny-llama", load or ready, fleet.unload, room)


def test_champion_canary_and_shadow(
    registry: Registry, versions: list[Version], put: Any, fleet: Fleet
) -> None:
    a, b, c = (version.id for version in versions[:3])
    catalog = follow(registry, fleet)

    async def after(*users: str) -> list[tuple[str, str, str | None]]:
        await catalog.refresh()
        routes = [await catalog.route("home", user) for user in users]
        return [
            (r.served.fingerprint, r.role, r.shadow.fingerprint if r.shadow else None)
            for r in routes
        ]

    async def main() -> None:
        put(0)
        assert await after("ann") == [(a, "served", None)]
        put(1, canary="50%")
        users = [str(n) for n in range(40)]
        met = await after(*users)
        assert set(met) == {(a, "served", None), (b, "canary", None)}
        assert await after(*users) == met
        put(2, shadow=True)
        assert set(await after(*users)) == {(a, "served", c), (b, "canary", c)}
        exact = await catalog.route(f"home@{b}", "ann")
        assert (exact.served.id, exact.role, exact.shadow) == (f"home@{b}", "pinned", None)
        assert exact.served.name == "home"
        with pytest.raises(RequestError, match="never promoted"):
            await catalog.route(f"home@{c}", "ann")
        rollback(registry, "home", actor="test")
        abort(registry, "home", actor="test")
        assert await after("ann") == [(a, "served", None)]

    asyncio.run(main())


def test_what_nothing_leads_to_is_unloaded_and_the_previous_champion_stays(
    registry: Registry, versions: list[Version], put: Any, fleet: Fleet
) -> None:
    a, b, c = (version.id for version in versions[:3])

    async def main() -> None:
        catalog = follow(registry, fleet)
        held = []
        for number in range(3):
            put(number)
            await catalog.refresh()
            await catalog.refresh()  # unloading begins when traffic has moved
            held.append(fleet.loaded)
        rollback(registry, "home", actor="test")
        await catalog.refresh()
        await catalog.refresh()
        held.append(fleet.loaded)
        assert held == [{a}, {a, b}, {b, c}, {a, b}]

    asyncio.run(main())


def test_a_deleted_name_is_served_no_more_and_a_deleted_version_nowhere(
    registry: Registry, versions: list[Version], put: Any, fleet: Fleet
) -> None:
    a, b, c = (version.id for version in versions[:3])
    catalog = follow(registry, fleet)

    async def lost(*models: str) -> None:
        for model in models:
            with pytest.raises(RequestError) as caught:
                await catalog.route(model, "ann")
            assert caught.value.status == 404

    async def main() -> None:
        for number in range(3):
            put(number)
        put(2, "garden")
        await catalog.refresh()
        for exact in (f"home@{a}", f"home@{b}"):
            assert (await catalog.find(exact)).id == exact
        delete_version(registry, a, actor="test")
        await catalog.refresh()
        await lost(f"home@{a}")
        assert (await catalog.find(f"home@{b}")).id == f"home@{b}"
        delete_name(registry, "home", actor="test")
        await catalog.refresh()
        await lost("home", f"home@{b}", f"home@{c}")
        assert catalog.ids == ["tiny-llama", "garden"]
        assert catalog.names == ["garden"]
        assert (await catalog.find("garden")).fingerprint == c
        await catalog.refresh()
        assert fleet.loaded >= {c}
        put(1)
        await catalog.refresh()
        assert (await catalog.find("home")).fingerprint == b, "it can be used anew"

    asyncio.run(main())


def test_where_there_is_no_room_previous_champions_are_not_held(
    registry: Registry, versions: list[Version], put: Any, fleet: Fleet
) -> None:
    async def main() -> None:
        for number in range(2):
            put(number)
            put(number + 2, "garden")
        catalog = follow(registry, fleet, room=3)
        await catalog.refresh()
        assert fleet.loaded == {versions[n].id for n in (1, 2, 3)}, "garden's has found room"

    asyncio.run(main())


def test_requests_for_exact_versions_never_drive_out_what_names_lead_to(
    registry: Registry, versions: list[Version], put: Any, tiny_model_dir: Path
) -> None:
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    engine = TextEngine(ContinuousEngine(base, Limits(max_adapters=3)), base.tokenizer)
    for number in (4, 3, 2, 1):
        put(number)
    put(0, canary="10%")

    async def main() -> None:
        fleet, engines = engine.engine, Fleet([engine])
        catalog = follow(registry, engines, room=3)

        async def ask(number: int) -> None:
            served = await catalog.find(f"home@{versions[number].id}")
            async for _ in engine.generate(TextRequest("hello", served.adapter, 0, 2)):
                pass

        await catalog.refresh()
        keeping = asyncio.create_task(keep_all(engines.keep, lambda: catalog.led_to))
        await asyncio.sleep(0.2)
        held = [set(fleet.loaded())]
        for number in (3, 4, 2, 3, 4):
            await ask(number)
            held.append(set(fleet.loaded()))
        answer = {versions[1].id, versions[0].id}
        assert held[0] == answer | {versions[2].id}  # the champion before makes room
        assert held[1:] == [answer | {versions[n].id} for n in (3, 4, 2, 3, 4)]
        put(2)
        await catalog.refresh()
        await asyncio.sleep(0.3)
        for number in (2, 3, 4, 3):
            await ask(number)
            assert versions[2].id in fleet.loaded()
        keeping.cancel()

    try:
        asyncio.run(main())
    finally:
        engine.engine.close()


def test_replicas_that_could_not_be_told_what_to_keep_are_told_again() -> None:
    told: list[frozenset[str]] = []
    led_to = frozenset({"a"})

    async def keep(slots: Collection[str]) -> None:
        told.append(frozenset(slots))
        if len(told) == 1:
            raise ConnectionError("no replica is there")

    async def main() -> None:
        nonlocal led_to
        keeping = asyncio.create_task(keep_all(keep, lambda: led_to))
        async with asyncio.timeout(30):
            while len(told) < 2:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            led_to = frozenset({"a", "b"})
            while len(told) < 3:
                await asyncio.sleep(0.02)
        keeping.cancel()
        assert told == [{"a"}, {"a"}, {"a", "b"}]

    asyncio.run(main())


def test_a_name_that_has_fallen_back_is_answered_by_the_base(
    registry: Registry, put: Any, fleet: Fleet
) -> None:
    put(0)
    fall = Decision(action="fallback", version="base", reason="broken")
    append(registry, "home", "test", lambda _: fall)

    async def main() -> None:
        catalog = follow(registry, fleet)
        await catalog.refresh()
        route = await catalog.route("home", "ann")
        assert (route.served.id, route.served.name) == ("tiny-llama", "home")
        assert (route.served.adapter, route.served.fingerprint) == (None, "base")
        assert catalog.ids == ["tiny-llama", "home"]

    asyncio.run(main())


def test_a_rollback_waits_for_nothing_that_is_being_loaded(
    registry: Registry, versions: list[Version], put: Any, fleet: Fleet
) -> None:
    released = asyncio.Event()

    async def load(adapter: AdapterRef) -> None:
        if adapter.slot == versions[2].id:
            await released.wait()
        await fleet.load(adapter)

    async def until(catalog: ModelCatalog, version: str) -> None:
        for _ in range(2000):
            if "home" in catalog.ids:
                route = await catalog.route("home", "ann")
                if route.served.fingerprint == version:
                    return
            await asyncio.sleep(0.01)
        pytest.fail(f"{version} does not come")

    async def main() -> None:
        catalog = follow(registry, fleet, load)
        put(0)
        put(1)
        watch = asyncio.create_task(catalog.watch())
        await until(catalog, versions[1].id)
        while fleet.loaded != {versions[0].id, versions[1].id}:
            await asyncio.sleep(0.01)
        put(2, "garden")
        put(2, canary="99%")
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        for _ in range(2):  # the canary, which never came to traffic, and the champion
            rollback(registry, "home", actor="test")
        await until(catalog, versions[0].id)
        assert time.monotonic() - begun < 5
        assert catalog.ids == ["tiny-llama", "home"]
        released.set()
        while "garden" not in catalog.ids:
            await asyncio.sleep(0.01)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("answer", "answer the golden prompt differently"),
        ("files", "reads other files than were stored"),
        ("numbers", "golden prompt: "),
    ],
)
def test_a_version_that_is_not_acknowledged_gets_no_traffic(
    spoil: str, why: str, registry: Registry, versions: list[Version], put: Any, fleet: Fleet
) -> None:
    class Spoilt(Fleet):
        async def check(self, adapter: AdapterRef, golden: Golden) -> list[Acknowledged]:
            first, second = await super().check(adapter, golden)
            if adapter.slot != versions[1].id:
                return [first, second]
            if spoil == "numbers":  # what `acknowledge` makes of an engine's non_finite
                await acknowledge(Failing("non_finite"), adapter, golden)
            if spoil == "files":
                return [first, Acknowledged("0" * 64, second.answer)]
            return [first, Acknowledged(second.digest, second.answer[:-1])]

    async def main() -> None:
        catalog = follow(registry, Spoilt(fleet.engines))
        put(0)
        await catalog.refresh()
        put(1, canary="99%")
        await catalog.refresh()
        users = [await catalog.route("home", str(n)) for n in range(50)]
        assert {route.served.fingerprint for route in users} == {versions[0].id}
        assert why in catalog.refused[versions[1].id]
        assert catalog.settled
        abort(registry, "home", actor="test")
        await catalog.refresh()
        assert not catalog.refused

    asyncio.run(main())


class Failing:
    """An engine that fails, or is busy so many times."""

    def __init__(self, code: str, times: int = 1000, then: TextEngine | None = None) -> None:
        self.code, self.times, self.then = code, times, then

    async def generate(self, request: TextRequest) -> Any:
        self.times -= 1
        if self.times < 0 and self.then:
            async for chunk in self.then.generate(request):
                yield chunk
            return
        raise RequestError(self.code, None, 500, self.code)


def test_a_busy_replica_is_asked_again(fleet: Fleet, versions: list[Version]) -> None:
    adapter = AdapterRef(versions[0].id, str(versions[0].folder))

    async def ask(engine: Any) -> Acknowledged:
        return await acknowledge(engine, adapter, GOLDEN)

    async def main() -> None:
        busy = Failing("queue_full", 2, fleet.engines[0])
        said = await ask(busy)
        assert said == await ask(fleet.engines[1])
        assert said.digest == versions[0].digest
        assert len(said.answer) == 6
        with pytest.raises(InputError, match="golden prompt"):
            await ask(Failing("engine_error"))

    asyncio.run(main())


def test_full_slots_and_lost_replicas_are_no_refusal(
    registry: Registry, versions: list[Version], put: Any, fleet: Fleet
) -> None:
    trouble = [RequestError("all slots are in use", "model", 429), ConnectionError("no replica")]

    async def load(adapter: AdapterRef) -> None:
        if trouble:
            raise trouble.pop()
        await fleet.load(adapter)

    async def main() -> None:
        put(0)
        catalog = follow(registry, fleet, load)
        for left in (1, 0):
            await catalog.refresh()
            assert (len(trouble), catalog.settled, dict(catalog.refused)) == (left, False, {})
        await catalog.refresh()
        assert catalog.settled
        assert catalog.ids == ["tiny-llama", "home"]

    asyncio.run(main())


def test_watching_ends_whenever_it_is_cancelled(fleet: Fleet, registry: Registry) -> None:
    """In the very moment too in which something has been loaded."""

    async def cancelled() -> bool:
        catalog = ModelCatalog(registry, "tiny-llama", fleet.load)
        watching = asyncio.create_task(catalog.watch())
        while not catalog.settled:
            await asyncio.sleep(0)
        catalog._loaded.moved.set()
        await asyncio.sleep(0)
        watching.cancel()
        ended, _ = await asyncio.wait({watching}, timeout=5)
        watching.cancel()
        return bool(ended)

    assert asyncio.run(cancelled())
