"""Roll-out over HTTP. The engine has no part in it: whatever is to be loaded is."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.auth.keys import KeyRing, key_hash
from orchestrator.config.rollout import GuardSpec
from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices, RolloutServices
from orchestrator.registry.models import Event, Version
from orchestrator.registry.registry import Registry
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.telemetry.request_record import steady
from tests.orchestrator.backends import Nowhere
from tests.orchestrator.rollout.traffic import answered, observed

KEY = "0123456789abcdef-test"
Ask = Callable[..., list[httpx.Response]]
Begin = Callable[..., Event]
HOME = "/moetune/v1/rollouts/home"


@pytest.fixture
def rollouts(registry: Registry) -> RolloutServices:
    catalog = ModelCatalog(registry, "tiny-llama", Nowhere().load)
    return RolloutServices.of(registry, catalog, GuardSpec())


@pytest.fixture
def ask(rollouts: RolloutServices) -> Ask:
    """ask(("POST", path, body), …): one after the other, with the operator's key."""
    keys = KeyRing(key_hash(KEY))
    app = create_app(
        Nowhere(), rollouts.catalog, GatewayServices(keys=keys, routers=(rollouts.router,))
    )

    def all_of(*requests: tuple[str, str, Any], key: str = KEY) -> list[httpx.Response]:
        return asyncio.run(_sent(app, rollouts.catalog, requests, key))

    return all_of


async def _sent(
    app: FastAPI, catalog: ModelCatalog, requests: Any, key: str
) -> list[httpx.Response]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers
    ) as web:
        await catalog.refresh()
        return [await web.request(method, path, json=body) for method, path, body in requests]


def test_the_state_of_names(
    ask: Ask, begin: Begin, versions: list[Version], rollouts: RolloutServices
) -> None:
    begin(0)
    begin(1, plan="5%,100% every 30m")
    begin(2, shadow=True)
    rollouts.observe(answered(versions[2].id, role="shadow", agreement=1.0, at=datetime.now(UTC)))
    one, every, other = ask(
        ("GET", HOME, None), ("GET", "/moetune/v1/rollouts", None), ("GET", f"{HOME}2", None)
    )
    state = one.json()
    assert (state["champion"], state["shadow"]) == (versions[0].id, versions[2].id)
    assert (state["canary"]["version"], state["canary"]["share"]) == (versions[1].id, 0.05)
    assert (state["shadow_seen"]["requests"], state["shadow_seen"]["equal"]) == (1, 1.0)
    assert state["requests"] == {"canary": 0, "champion": 0, "warning": None}
    assert state["refused"] == {}
    assert every.json() == {"rollouts": [state]}
    assert other.status_code == 404


def test_a_canary_that_nobody_meets_is_told(
    ask: Ask, begin: Begin, versions: list[Version], rollouts: RolloutServices
) -> None:
    begin(0)
    begin(1, canary="10%")
    [quiet] = ask(("GET", HOME, None))
    assert quiet.json()["requests"] == {"canary": 0, "champion": 0, "warning": None}
    observed(rollouts.observe, (50, answered(versions[0].id, came=steady())))
    [warned] = ask(("GET", HOME, None))
    told = warned.json()["requests"]
    assert (told["canary"], told["champion"]) == (0, 50)
    assert told["warning"].startswith("none of the last 50 requests met the canary of 10%; ")
    assert "field `user`" in told["warning"]


def test_promote_canary_abort_and_rollback(ask: Ask, begin: Begin, versions: Any) -> None:
    begin(0)
    a, b, c = (version.id for version in versions)
    canary, state, ended, promoted, moved, back, again = ask(
        ("POST", f"{HOME}/promote", {"version": b, "canary": "10%", "reason": "try"}),
        ("GET", HOME, None),
        ("POST", f"{HOME}/abort", {}),
        ("POST", f"{HOME}/promote", {"version": c, "plan": None, "force": None}),
        ("GET", HOME, None),
        ("POST", f"{HOME}/rollback", {"reason": "complaints"}),
        ("GET", HOME, None),
    )
    assert (canary.json()["action"], canary.json()["actor"]) == ("canary", "operator")
    assert canary.json()["evidence"]["metric"] == "validation/loss", "as the champion was judged"
    assert state.json()["canary"]["version"] == b
    assert (ended.json()["action"], ended.json()["version"]) == ("abort", b)
    assert (promoted.json()["version"], moved.json()["champion"]) == (c, c)
    assert (back.json()["action"], back.json()["reason"]) == ("rollback", "complaints")
    assert again.json()["champion"] == a


def test_what_is_refused(ask: Ask, begin: Begin, versions: Any, registry: Registry) -> None:
    begin(2)
    worse, _, known, *bad = ask(
        ("POST", f"{HOME}/promote", {"version": versions[0].id}),
        ("GET", HOME, None),
        ("POST", "/moetune/v1/rollouts/other/promote", {"version": versions[0].id}),
        ("POST", f"{HOME}/rollback", {}),
        ("POST", f"{HOME}/abort", {}),
        ("POST", f"{HOME}/promote", {"version": "../../etc"}),
        ("POST", f"{HOME}/promote", {"version": versions[0].id, "canary": "ten"}),
        ("POST", f"{HOME}/promote", {"version": versions[0].id, "nonsense": 1}),
        ("POST", f"{HOME}/promote", {}),
        ("POST", "/moetune/v1/rollouts/%2e%2e%2fetc/rollback", {}),
    )
    assert worse.status_code == 409
    assert worse.json()["error"]["code"] == "gate_refused"
    assert "name a metric" in known.json()["error"]["message"]
    for response in (known, *bad):
        assert 400 <= response.status_code < 500, response.text
        assert "\n" not in response.json()["error"]["message"]
    assert len(registry.history("home")) == 1


def test_writing_wants_a_key(ask: Ask, begin: Begin, registry: Registry) -> None:
    begin(0)
    begin(1)
    responses = ask(
        ("POST", f"{HOME}/rollback", {}), ("POST", f"{HOME}/abort", {}), ("GET", HOME, None), key=""
    )
    assert {response.status_code for response in responses} == {401}
    assert len(registry.history("home")) == 2
