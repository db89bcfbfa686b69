"""The gate, force, and rollback."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.registry.describe import evidence_line
from orchestrator.registry.log import Decision, append, this_user
from orchestrator.registry.models import BASE
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import GateRefused, abort, promote, rollback
from orchestrator.registry.registry import Registry
from workers.adapter.convert import import_folder
from workers.adapter.files import save
from workers.adapter.manifest import BaseRecord, Manifest
from workers.config.adapter import AdapterSpec
from workers.config.base import InputError
from workers.config.metrics import value_at
from workers.injection.inject import inject

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "mixlora_llama"
LOSS = "validation/loss"
Put = Callable[..., Any]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path / 'moetune.db'}", tmp_path)


@pytest.fixture
def put(registry: Registry, tmp_path: Path) -> Put:
    """Registers the golden adapter (4 experts, top 2) with the given facts."""
    source = import_folder(GOLDEN / "adapter", tmp_path / "adapter")

    def register(
        loss: float | None = 1.0,
        study: str = "s",
        load: tuple[float, ...] = (0.25,) * 4,
        loads: dict[str, tuple[float, ...]] | None = None,
        data: str | None = "d",
        base: dict[str, float] | None = None,
        **more: float,
    ) -> Any:
        metrics = {"validation": {**more, **({} if loss is None else {"loss": loss})}}
        two = {"layers.0.mlp": (0.25,) * 4, "layers.1.mlp": load} if load else {}
        lineage = {"data_digest": data, "expert_load": loads or two}
        lineage |= {"base_metrics": {"validation": base}} if base else {}
        return registry.register(study, 1, source, metrics, lineage)

    return register


def refused(registry: Registry, version: Any, **how: Any) -> list[str]:
    """The gate's reasons; the log must stay as it was."""
    before = registry.history("home")
    with pytest.raises(GateRefused) as caught:
        promote(registry, version, "home", **{"actor": "ann", "metric": LOSS, **how})
    assert registry.history("home") == before
    assert all(reason in str(caught.value) for reason in caught.value.reasons)
    assert "\n" not in str(caught.value)
    return caught.value.reasons


def test_a_promotion_says_who_why_and_on_what_evidence(registry: Registry, put: Put) -> None:
    first, second = put(2.0), put(1.0)
    promote(registry, first.id, "home", actor="ann", metric=LOSS)
    event = promote(registry, second, "home", actor="ben", metric=LOSS, reason="better on DE")
    assert registry.history("home")[-1] == event
    assert (event.revision, event.action, event.actor) == (2, "promote", "ben")
    assert (event.version, event.previous) == (second.id, first.id)
    assert event.reason == "better on DE"
    assert event.evidence["metric"] == LOSS
    assert event.evidence["candidate"]["value"] == 1.0
    assert event.evidence["champion"]["value"] == 2.0
    assert event.evidence["forced"] is False


@pytest.mark.parametrize(("mode", "better", "worse"), [("min", 1.0, 3.0), ("max", 3.0, 1.0)])
def test_only_a_better_version_passes(
    mode: Any, better: float, worse: float, registry: Registry, put: Put
) -> None:
    promote(registry, put(2.0), "home", actor="ann", metric=LOSS, mode=mode)
    assert "is not better than 2 of champion" in refused(registry, put(worse), mode=mode)[0]
    assert "is not better" in refused(registry, put(2.0, load=(0.4, 0.2, 0.2, 0.2)), mode=mode)[0]
    assert promote(registry, put(better), "home", actor="ann", metric=LOSS, mode=mode).revision == 2


@pytest.mark.parametrize(
    ("metric", "mode", "mine", "base", "why"),
    [
        (LOSS, "min", {"loss": 10.8}, {"loss": 3.4}, f"its {LOSS} of 10.8 is not better than 3.4"),
        (LOSS, "min", {"loss": 3.4}, {"loss": 3.4}, f"its {LOSS} of 3.4 is not better than 3.4 of"),
        (LOSS, "min", {"loss": 3.3}, {"loss": 3.4}, None),
        (
            "validation/score",
            "max",
            {"score": 0.1},
            {"loss": 3.0, "score": 0.2},
            "its validation/s",
        ),
        ("validation/score", "max", {"loss": 9.0, "score": 0.3}, {"loss": 3.0, "score": 0.2}, None),
        (
            "validation/balance",
            "min",
            {"loss": 9.0, "balance": 1.0},
            {"loss": 3.0},
            f"its {LOSS} of",
        ),
        ("validation/balance", "max", {"loss": 2.0, "balance": 1.0}, {"loss": 3.0}, None),
        (LOSS, "min", {"loss": 10.8}, None, None),
    ],
)
def test_the_bare_base_is_the_first_champion(
    metric: str,
    mode: Any,
    mine: dict[str, float],
    base: dict[str, float] | None,
    why: str | None,
    registry: Registry,
    put: Put,
) -> None:
    """Where it has no such metric, the loss decides; of what nobody measured, nothing is known."""
    version = put(**{"loss": None, **mine}, base=base)
    how = {"metric": metric, "mode": mode}
    if why is None:
        event = promote(registry, version, "home", actor="ann", **how)
        assert ("the base's" in evidence_line(event)) == bool(base)
    else:
        (reason,) = refused(registry, version, **how)
        assert reason.startswith(why)
        assert reason.endswith("of the bare base")
        promote(registry, version, "home", actor="ann", **how, force=True, reason="no matter")


def test_what_comes_from_elsewhere_wants_its_base_measured(registry: Registry, put: Put) -> None:
    """Of other versions that nobody knows the base of, nothing is known: they pass."""
    origin = {"path": "/their/adapter", "digest": "0" * 64}
    facts = {"data_digest": "d", "expert_load": {"layers.0.mlp": (0.25,) * 4}, "origin": origin}
    source, metrics = put().folder, {"validation": {"loss": 1.0}}
    version = registry.register("s", None, source, metrics, facts)
    why = "it comes from adapter, and nobody has measured its base here"
    assert refused(registry, version) == [why]
    measured = {**facts, "base_metrics": {"validation": {"loss": 3.0}}}
    version = registry.register("s", None, source, metrics, measured)
    event = promote(registry, version, "home", actor="ann", metric=LOSS)
    assert evidence_line(event).endswith("the base's 3; brought in from adapter")
    assert "/their" not in event.model_dump_json(), "a name's history is told to all who may ask"


def test_who_falls_back_to_the_base_must_beat_it_again(registry: Registry, put: Put) -> None:
    good = put(1.0, base={"loss": 3.0})
    promote(registry, good, "home", actor="ann", metric=LOSS)
    back = Decision(action="rollback", version=BASE, reason="no good")
    append(registry, "home", "guard", lambda _: back)
    assert "of the bare base" in refused(registry, put(4.0, base={"loss": 3.0}))[0]
    assert promote(registry, put(2.0, base={"loss": 3.0}), "home", actor="ann", metric=LOSS)


def test_a_router_that_selects_nothing_is_refused(registry: Registry, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    adapter = inject(model, AdapterSpec(num_experts=2, top_k=2))
    save(adapter, tmp_path / "all", Manifest(base=BaseRecord(path="b")))
    lineage = {"expert_load": {f"layers.{layer}.mlp": (0.5, 0.5) for layer in (0, 1)}}
    version = registry.register("s", 1, tmp_path / "all", {"validation": {"loss": 1.0}}, lineage)
    (reason,) = refused(registry, version)
    assert reason == "its router sends every token to all 2 experts, so it selects nothing"


@pytest.mark.parametrize(
    ("load", "why"),
    [
        ((0.5, 0.48, 0.01, 0.01), "2 of 4 experts get 98.0%"),
        ((1.0, 0.0, 0.0, 0.0), "2 of 4 experts get 100.0%, 3 of 4 are unused"),
        ((0.0, 0.0, 0.0, 0.0), "no token reaches any of 4 experts"),
    ],
)
def test_a_collapsed_router_is_refused_even_without_a_champion(
    load: tuple[float, ...], why: str, registry: Registry, put: Put
) -> None:
    told = f"its router has collapsed in layers.1.mlp: {why}"
    assert refused(registry, put(load=load)) == [told]


def test_a_router_that_nobody_measured_is_refused(registry: Registry, put: Put) -> None:
    (reason,) = refused(registry, put(load=()))
    assert reason.startswith("no expert load was recorded")


def test_many_collapsed_layers_are_one_clause_with_the_worst(registry: Registry, put: Put) -> None:
    """A model of 30 layers was refused in 60 clauses."""
    fine, bad, worst = (0.25,) * 4, (0.5, 0.46, 0.02, 0.02), (0.9, 0.09, 0.005, 0.005)
    loads = {f"layers.{layer}.mlp": fine if layer % 3 else bad for layer in range(30)}
    version = put(loads=loads | {"layers.12.mlp": worst})
    told = "its router has collapsed in 10 of 30 layers, worst in layers.12.mlp: 2 of 4 experts"
    assert refused(registry, version) == [f"{told} get 99.0%"]


@pytest.mark.parametrize("load", [(0.5, 0.4, 0.1, 0.0), (0.45, 0.45, 0.1, 0.0), (9, 8, 7, 6)])
def test_an_uneven_router_may_pass(load: tuple[float, ...], registry: Registry, put: Put) -> None:
    assert promote(registry, put(load=load), "home", actor="ann", metric=LOSS).revision == 1


def test_plain_lora_has_no_router_to_check(registry: Registry, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    adapter = inject(model, AdapterSpec(num_experts=1, top_k=1))
    save(adapter, tmp_path / "plain", Manifest(base=BaseRecord(path="b")))
    version = registry.register("s", 1, tmp_path / "plain", {LOSS: 1.0})
    assert promote(registry, version, "home", actor="ann", metric=LOSS).revision == 1


def test_all_reasons_are_listed(registry: Registry, put: Put) -> None:
    promote(registry, put(2.0), "home", actor="ann", metric=LOSS)
    reasons = refused(registry, put(3.0, data="other", load=(1.0, 0.0, 0.0, 0.0)))
    assert len(reasons) == 3
    assert "measured on other data" in reasons[0]


def test_what_cannot_be_compared_is_refused(registry: Registry, put: Put) -> None:
    promote(registry, put(2.0, score=0.5), "home", actor="ann", metric=LOSS)
    better = put(1.0, score=0.9)
    assert (
        "was judged by min validation/loss, this one by max validation/score"
        in (refused(registry, better, metric="validation/score", mode="max")[0])
    )
    assert "judged by min" in refused(registry, put(3.0), mode="max")[0]
    assert refused(registry, put(None)) == ["it has no metric validation/loss"]
    assert "other data" in refused(registry, put(1.0, data=None))[0]


def test_unknown_data_compares_within_a_study_only(registry: Registry, put: Put) -> None:
    promote(registry, put(2.0, data=None), "home", actor="ann", metric=LOSS)
    assert "other data" in refused(registry, put(1.0, data=None, study="t"))[0]
    assert promote(registry, put(1.0, data=None), "home", actor="ann", metric=LOSS).revision == 2


def test_force_overrides_with_a_reason_and_is_logged(registry: Registry, put: Put) -> None:
    promote(registry, put(2.0), "home", actor="ann", metric=LOSS)
    worse = put(3.0, load=(1.0, 0.0, 0.0, 0.0))
    for reason in ("", "  "):
        with pytest.raises(InputError, match="a forced promotion needs a reason"):
            promote(registry, worse, "home", actor="a", metric=LOSS, force=True, reason=reason)
    event = promote(
        registry, worse, "home", actor="ann", metric=LOSS, force=True, reason="pilot in Graz"
    )
    assert event.reason == "pilot in Graz"
    assert event.evidence["forced"] is True
    assert len(event.evidence["reasons"]) == 2
    easy = promote(registry, put(1.0), "home", actor="a", metric=LOSS, force=True, reason="sure")
    assert easy.evidence["forced"] is False, "nothing had to be overridden"


def test_the_champion_is_not_promoted_again(registry: Registry, put: Put) -> None:
    version = put()
    promote(registry, version, "home", actor="ann", metric=LOSS)
    with pytest.raises(InputError, match="is its champion already"):
        promote(registry, version, "home", actor="a", metric=LOSS, force=True, reason="again")


@pytest.mark.parametrize("actor", ["", " ", "x" * 201])
def test_an_actor_is_needed(actor: str, registry: Registry, put: Put) -> None:
    with pytest.raises(InputError, match="an actor of 1 to 200 characters"):
        promote(registry, put(), "home", actor=actor, metric=LOSS)


def test_a_lost_champion_does_not_block_its_successor(registry: Registry, put: Put) -> None:
    import shutil

    first = put(2.0)
    promote(registry, first, "home", actor="ann", metric=LOSS)
    shutil.rmtree(first.folder)
    assert "other data" in refused(registry, put(1.0))[0]
    event = promote(
        registry, put(1.0), "home", actor="ann", metric=LOSS, force=True, reason="files lost"
    )
    assert event.revision == 2
    with pytest.raises(InputError, match="is gone"):
        rollback(registry, "home", actor="ann")
    assert len(registry.history("home")) == 2


def test_rollbacks_go_back_step_by_step(registry: Registry, put: Put) -> None:
    a, b, c, d = (put(loss) for loss in (4.0, 3.0, 2.0, 1.0))
    for version in (a, b, c):
        promote(registry, version, "home", actor="ann", metric=LOSS)
    event = rollback(registry, "home", actor="ben", reason="complaints")
    assert (event.action, event.version, event.previous) == ("rollback", b.id, c.id)
    assert (event.actor, event.reason, event.revision) == ("ben", "complaints", 4)
    promote(registry, d, "home", actor="ann", metric=LOSS)
    state = registry.rollout("home")
    assert state is not None
    assert state.line == (a.id, b.id, d.id)
    assert rollback(registry, "home", actor="ben").version == b.id
    assert rollback(registry, "home", actor="ben").version == a.id
    assert registry.champion("home") == a
    with pytest.raises(InputError, match="no earlier champion"):
        rollback(registry, "home", actor="ben")
    with pytest.raises(InputError, match="nothing was promoted"):
        rollback(registry, "other", actor="ben")
    assert promote(registry, b, "home", actor="ann", metric=LOSS).revision == 8


def test_a_promotion_after_a_rollback_is_compared_with_the_standing_champion(
    registry: Registry, put: Put
) -> None:
    a, b, c = put(3.0), put(1.0), put(2.0)
    for version in (a, b):
        promote(registry, version, "home", actor="ann", metric=LOSS)
    rollback(registry, "home", actor="ben")
    assert promote(registry, c, "home", actor="ann", metric=LOSS).previous == a.id


@pytest.mark.parametrize(
    ("metrics", "value"),
    [
        ({"validation": {"loss": 1}}, 1.0),
        ({"validation/loss": 2.5}, 2.5),
        ({"validation": {"loss": True}}, None),
        ({"validation": 3.0}, None),
        ({}, None),
    ],
)
def test_metrics_are_found_nested_and_flat(metrics: dict[str, Any], value: float | None) -> None:
    assert value_at(metrics, "validation/loss") == value


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    assert this_user() == f"uid {2**31 - 5}"


def test_a_canary_passes_the_whole_gate(registry: Registry, put: Put) -> None:
    first, better, worse = put(2.0), put(1.0), put(3.0)
    ten = stage(canary="10%")
    with pytest.raises(InputError, match="no champion yet; promote without --canary"):
        promote(registry, first, "home", actor="ann", metric=LOSS, stage=ten)
    promote(registry, first, "home", actor="ann", metric=LOSS)
    assert "is not better" in refused(registry, worse, stage=ten)[0]
    event = promote(registry, better, "home", actor="ann", metric=LOSS, stage=ten)
    assert (event.action, event.version, event.previous) == ("canary", better.id, first.id)
    assert event.evidence["share"] == 0.1
    assert registry.champion("home") == first
    assert registry.resolve(f"home@{better.id}") == better
    # Promoting it after all is judged as ever, and ends the canary.
    assert promote(registry, better, "home", actor="ann", metric=LOSS).previous == first.id
    state = registry.rollout("home")
    assert state is not None
    assert (state.champion, state.canary) == (better.id, None)


def test_a_shadow_passes_but_cannot_be_asked_for(registry: Registry, put: Put) -> None:
    promote(registry, put(2.0), "home", actor="ann", metric=LOSS)
    worse = put(3.0, load=(1.0, 0.0, 0.0, 0.0))
    event = promote(registry, worse, "home", actor="ann", metric=LOSS, stage=stage(shadow=True))
    assert (event.action, len(event.evidence["reasons"])) == ("shadow", 2)
    assert event.evidence["forced"] is False
    with pytest.raises(InputError, match="was never promoted to home"):
        registry.resolve(f"home@{worse.id}")
    assert len(refused(registry, worse)) == 2


def test_a_rollback_takes_back_the_last_step(registry: Registry, put: Put) -> None:
    a, b, c = (put(loss) for loss in (3.0, 2.0, 1.0))
    for version in (a, b):
        promote(registry, version, "home", actor="ann", metric=LOSS)
    promote(registry, c, "home", actor="ann", metric=LOSS, stage=stage(canary="10%"))
    ended = rollback(registry, "home", actor="ben")
    assert (ended.action, ended.version, ended.previous) == ("abort", c.id, b.id)
    assert registry.champion("home") == b
    assert rollback(registry, "home", actor="ben").version == a.id


def test_abort_ends_the_canary_and_then_the_shadow(registry: Registry, put: Put) -> None:
    a, b, c = (put(loss) for loss in (3.0, 2.0, 1.0))
    promote(registry, a, "home", actor="ann", metric=LOSS)
    for version, how in ((b, stage(canary="10%")), (c, stage(shadow=True))):
        promote(registry, version, "home", actor="ann", metric=LOSS, stage=how)
    ended = [abort(registry, "home", actor="ann").version for _ in range(2)]
    assert ended == [b.id, c.id]
    with pytest.raises(InputError, match="no canary and no shadow"):
        abort(registry, "home", actor="ann")
    with pytest.raises(InputError, match="nothing was promoted"):
        abort(registry, "other", actor="ann")


def test_after_a_fallback_the_gate_compares_with_what_stands(registry: Registry, put: Put) -> None:
    a, b, c = (put(loss) for loss in (3.0, 1.0, 2.0))
    for version in (a, b):
        promote(registry, version, "home", actor="ann", metric=LOSS)
    fall = Decision(action="fallback", version="base", reason="broken")
    append(registry, "home", "moetune", lambda _: fall)
    assert registry.champion("home") is None
    assert registry.champions() == {}
    with pytest.raises(InputError, match="has fallen back to the bare base: broken"):
        registry.resolve("home")
    event = promote(registry, c, "home", actor="ann", metric=LOSS)
    assert (event.previous, "champion" in event.evidence) == ("base", False)
    assert rollback(registry, "home", actor="ann").version == "base"
    assert rollback(registry, "home", actor="ann").version == a.id


def test_the_bases_own_id_is_no_name_to_promote_to(registry: Registry, put: Put) -> None:
    version = put()
    own = registry.manifest(version).base.name
    with pytest.raises(InputError, match=f"^{own}: is what requests call the bare base") as caught:
        promote(registry, version, own, actor="ann", metric=LOSS, force=True, reason="x")
    assert "\n" not in str(caught.value)
    assert registry.names() == []
