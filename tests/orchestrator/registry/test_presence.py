"""Which names are served: gateways say so, and are told from dead ones by their silence."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from orchestrator.config.cluster import ClusterSpec
from orchestrator.disk.deletion import delete
from orchestrator.registry.models import Version
from orchestrator.registry.presence import (
    LOST_SECONDS,
    Presence,
    is_said_to_be_served,
    is_served,
)
from orchestrator.registry.presence_store import PresenceStore
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from workers.config.base import InputError

SOON = 1.0


def test_nothing_is_served_where_no_gateway_has_ever_been(store: str) -> None:
    started = time.monotonic()
    assert not is_served(store, "home", patience=3600)
    assert time.monotonic() - started < 600, "nobody was waited for"


def test_a_gateway_says_what_it_serves_until_it_leaves(store: str) -> None:
    names = ["home"]

    async def main() -> None:
        task = asyncio.create_task(Presence(store, lambda: names).run())
        try:
            assert await seen("home", True)
            assert not await asyncio.to_thread(is_served, store, "garden", SOON)
            names.append("garden")
            assert await seen("garden", True)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert not await asyncio.to_thread(is_served, store, "home", 3600), "it has said so"

    async def seen(name: str, wanted: bool) -> bool:
        """It may take the gateway a moment to say it."""
        for _ in range(60):
            if await asyncio.to_thread(is_served, store, name, SOON) == wanted:
                return True
            await asyncio.sleep(0.5)
        return False

    asyncio.run(main())


def test_a_gateway_that_was_killed_is_forgotten(store: str) -> None:
    dead = Presence(store, lambda: ["home"])
    dead.beat()
    assert not is_served(store, "home", patience=SOON)
    assert not is_served(store, "home", patience=3600), "it is not asked for again"


def test_a_gateway_forgets_those_that_stood_still_for_long(store: str) -> None:
    """By its own clock alone; one that beats stays however seldom it is looked at."""
    now = [0.0]
    mine, dead, slow = (Presence(store, lambda: ["home"], lambda: now[0]) for _ in range(3))
    for one in (mine, dead, slow):
        one.beat()
    with closing(PresenceStore(store)) as rows:
        for seconds, left in ((0, 3), (LOST_SECONDS - 1, 3), (LOST_SECONDS, 2), (1e9, 2)):
            now[0] = seconds
            slow.beat()
            mine.forget_lost()
            assert len(rows.beats()) == left, seconds
        assert is_said_to_be_served(store, "home")
        dead.beat()
        assert len(rows.beats("home")) == 3, "it has come back"


def test_a_gateway_looks_for_lost_ones_by_itself(store: str) -> None:
    now = [0.0]
    Presence(store, lambda: ["home"]).beat()
    mine = Presence(store, list, lambda: now[0])
    for seconds in (0.0, LOST_SECONDS):
        now[0] = seconds
        for _ in range(60):
            mine.beat()
    assert not is_said_to_be_served(store, "home")


def test_of_two_gateways_the_living_one_counts(store: str) -> None:
    dead, alive = Presence(store, lambda: ["home"]), Presence(store, lambda: ["home"])
    dead.beat()
    alive.beat()
    ended = threading.Event()

    def beats() -> None:
        while not ended.wait(0.1):
            alive.beat()

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        assert is_served(store, "home", patience=3600)
    finally:
        ended.set()
        thread.join()


def test_a_store_that_is_away_ends_nothing() -> None:
    async def main() -> None:
        away = "sqlite:////proc/nowhere/moetune.db"
        task = asyncio.create_task(Presence(away, lambda: ["home"]).run())
        await asyncio.sleep(0.2)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(main())


def test_a_name_that_is_served_is_deleted_by_force_alone(
    registry: Registry, versions: list[Version], begin: Callable[..., object]
) -> None:
    begin(0)
    promote(registry, versions[0], "other", actor="a", metric="validation/loss")
    place = ClusterSpec(storage=str(versions[0].folder.parents[1]))
    gateway = Presence(place.store_url(), lambda: ["home"])
    gateway.beat()
    ended = threading.Event()

    def beats() -> None:
        while not ended.wait(0.1):
            gateway.beat()

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with pytest.raises(InputError, match="home: an endpoint serves it, and its requests would"):
            delete(place, "home", actor="ann")
        assert registry.rollout("home")
        delete(place, "other", actor="ann")
        delete(place, "home", actor="ann", force=True)
    finally:
        ended.set()
        thread.join()
    assert registry.names() == []
