"""What of a study was promoted, as the names' logs have it."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote, rollback
from orchestrator.registry.promoted import promotions
from orchestrator.registry.registry import Registry
from orchestrator.registry.store import Store


@pytest.fixture
def registry(store: str, tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry(store, tmp_path)) as opened:
        yield opened


def test_versions_of_the_study_are_told_with_what_answers_now(
    registry: Registry, make_adapter: Callable[..., Path]
) -> None:
    ours = [registry.register("home", n, make_adapter(60 + n), {}) for n in (0, 1)]
    other = registry.register("garden", 7, make_adapter(67), {})
    force = partial(
        promote, registry, actor="ada", metric="validation/loss", reason="<b>why</b>", force=True
    )
    assert promotions(registry, "home").found == ()
    force(ours[0], "desk")
    force(ours[1], "desk", stage=stage("10%", None, False))
    force(ours[0], "shop")
    force(other, "shop")
    told = promotions(registry, "home")
    assert told.unread == ()
    assert [(one.name, one.trial, one.action, one.now) for one in told.found] == [
        ("shop", 0, "promote", f"{other.id} of study garden answers"),
        ("desk", 1, "canary", "canary for 10 %"),
        ("desk", 0, "promote", "champion"),
    ]
    assert {(one.actor, one.reason) for one in told.found} == {("ada", "<b>why</b>")}
    assert [one.version for one in told.found] == [ours[0].id, ours[1].id, ours[0].id]
    assert [one.at for one in told.found] == sorted((o.at for o in told.found), reverse=True)
    rollback(registry, "shop", actor="ada", reason="worse")
    assert promotions(registry, "home").found[0].action == "rollback"
    assert promotions(registry, "home").found[0].now == "champion"
    assert [one.trial for one in promotions(registry, "garden").found] == [7]
    assert promotions(registry, "nothing").found == ()


def test_a_log_that_cannot_be_read_hides_no_other(
    registry: Registry, store: str, make_adapter: Callable[..., Path]
) -> None:
    version = registry.register("home", 0, make_adapter(68), {})
    for name in ("a", "b"):
        promote(registry, version, name, actor="ada", metric="x", reason="x", force=True)
    event = registry.history("a")[-1].model_dump(mode="json")
    with closing(Store(store)) as raw:
        raw.add_event({**event, "revision": 2, "action": "of next year"})
    told = promotions(registry, "home")
    assert [one.name for one in told.found] == ["b"]
    [why] = told.unread
    assert why.startswith("a: revision 2 of its log cannot be read here")
