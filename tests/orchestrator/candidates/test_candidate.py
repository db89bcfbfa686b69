"""Which version is meant, by which metric it is compared, and what it is promoted to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.candidates.candidate import Wish
from orchestrator.cli import app
from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.job import JobSpec, override_job
from orchestrator.registry.log import Decision, append
from orchestrator.registry.models import Version
from orchestrator.registry.promote import promote, rollback
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout
from tests.orchestrator.conftest import Play
from workers.config.base import InputError

LOSS, SCORE = "validation/loss", "validation/score"
Register = Callable[..., Version]


@pytest.fixture
def place(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterSpec:
    """A storage folder, and a store of each kind."""
    monkeypatch.setenv("MOETUNE_STORE", store)
    return ClusterSpec(storage=str(tmp_path))


@pytest.fixture
def registry(store: str, place: ClusterSpec) -> Registry:
    return Registry(store, place.storage)


@pytest.fixture
def register(registry: Registry, make_adapter: Callable[..., Path]) -> Register:
    """register(loss, study="s", score=…): a version of plain LoRA that measured so much."""
    source = make_adapter(1, num_experts=1, top_k=1)

    def registered(loss: float, study: str = "s", score: float = 0.5) -> Version:
        metrics = {"validation": {"loss": loss, "score": score}}
        lineage = {"data_digest": "d", "base_metrics": {"validation": {"loss": 5.0}}}
        return registry.register(study, 1, source, metrics, lineage)

    return registered


@pytest.fixture
def run(place: ClusterSpec) -> Callable[..., str]:
    """run("promote", …): what the command prints; its InputError is raised."""

    def ran(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--storage", place.storage])
        if isinstance(result.exception, InputError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return ran


def state(registry: Registry) -> Rollout:
    found = registry.rollout("home")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (Wish("support", "home"), "home"),
        (Wish("support", "home", trial=3), "home"),
        (Wish("home", version="3f9a"), "home"),
        (Wish("support", "home", version="3f9a"), "home"),
        (Wish("home", version=".", job="job.yaml"), "home"),
    ],
)
def test_the_name_that_is_meant(wish: Wish, name: str) -> None:
    wish.check()
    assert wish.name == name


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish("home", "n", trial=3, version="3f9a"), "one of --trial and --version"),
        (Wish("home", version=""), "--version: is empty"),
        (Wish("support"), r"--to is missing: promote support --to NAME .*--version ID\|FOLDER"),
        (Wish("support", "home", job="job.yaml"), "it wants --version FOLDER"),
        (Wish("home", version="3f9a", job="job.yaml"), "it wants --version FOLDER"),
        (Wish("s", "home", version=".", job="job.yaml"), "take one of s --to home and home --job"),
    ],
)
def test_words_that_do_not_go_together(wish: Wish, why: str) -> None:
    with pytest.raises(InputError, match=why):
        wish.check()


def test_one_goes_forward_again_after_a_rollback(
    run: Callable[..., str], registry: Registry, register: Register
) -> None:
    first, second = register(2.0), register(1.0)
    assert run("promote", "home", "--version", first.id).startswith("home is now home@")
    run("promote", "home", "--version", second.digest)
    said = run("rollback", "home", "--reason", "complaints")
    again = f"moetune promote home --version {second.id}"
    assert said == (f"home is back at home@{first.id} (was {second.id}); forward again: {again}\n")
    run(*again.split()[1:], "--reason", "it was the network")
    assert state(registry).line == (first.id, second.id)
    events = json.loads(run("history", "home", "--json"))
    assert [e["action"] for e in events] == ["promote", "promote", "rollback", "promote"]
    assert (events[3]["previous"], events[3]["reason"]) == (first.id, "it was the network")
    assert run("rollback", "home").startswith(f"home is back at home@{first.id}")


def test_a_promotion_says_whether_it_can_be_exported(
    run: Callable[..., str], registry: Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    shapes: tuple[dict[str, Any], ...] = ({}, {"routing": "top_p"})
    can, cannot = (
        registry.register("s", n, make_adapter(n, **shape), {"validation": {"loss": 2.0 - n}}, {})
        for n, shape in enumerate(shapes)
    )
    forced = ("--force", "--reason", "to try it")
    said = run("promote", "home", "--version", can.id, *forced).splitlines()
    command = f"moetune export home@{can.id} --to FOLDER --storage {tmp_path}"
    assert said[-1] == f"it can be exported as MixtralForCausalLM: {command}"
    staged = ("promote", "home", "--version", cannot.id, "--canary=5%", *forced)
    said = run(*staged).splitlines()
    assert said[-1].startswith("it cannot be exported as an ordinary checkpoint: routing: top_p")
    run("abort", "home")
    event = json.loads(run(*staged, "--json"))
    assert event["action"] == "canary"
    assert event["export"]["architecture"] is None
    assert "the nearest is routing: top_k" in event["export"]["why_not"]


def test_forward_is_by_the_gate(
    run: Callable[..., str], registry: Registry, register: Register
) -> None:
    better, worse = register(1.0), register(2.0)
    run("promote", "home", "--version", better.id)
    forced = ("--force", "--reason", "to try it")
    run("promote", "home", "--version", worse.id, *forced)
    run("rollback", "home")
    with pytest.raises(InputError, match="its validation/loss of 2 is not better than 1"):
        run("promote", "home", "--version", worse.id)
    assert state(registry).champion == better.id
    assert "is the canary" in run("promote", "home", "--version", worse.id, "--canary=5%", *forced)
    run("rollback", "home")
    assert "is the shadow" in run("promote", "home", "--version", worse.id, "--shadow")


@pytest.mark.parametrize("ended", ["fallback", "abort"])
def test_what_the_guard_has_ended_says_why_and_wants_force(
    ended: Any, run: Callable[..., str], registry: Registry, register: Register
) -> None:
    first, second = register(2.0), register(1.0)
    run("promote", "home", "--version", first.id)
    stage = () if ended == "fallback" else ("--canary", "10%")
    run("promote", "home", "--version", second.id, *stage)
    version = first.id if ended == "fallback" else second.id
    evidence = {"check": "error_rate", "errors": {}, "requests": 9, "p95_seconds": 1.0}
    why = "9 of 9 requests have failed"
    guard = Decision(action=ended, version=version, reason=why, evidence={**evidence, "x": 1})
    append(registry, "home", "moetune", lambda _: guard)
    for way in ((), ("--canary", "10%")):
        with pytest.raises(InputError, match=rf"the guard ended it at 2\d.* UTC: {why}") as caught:
            run("promote", "home", "--version", second.id, *way)
        assert "override with --force --reason" in str(caught.value)
    assert state(registry).champion == first.id
    run("promote", "home", "--version", second.id, "--force", "--reason", "mended the engine")
    reasons = registry.history("home")[-1].evidence["reasons"]
    assert len(reasons) == 1, "nothing else was wrong with it"
    rollback(registry, "home", actor="ann")
    run("promote", "home", "--version", second.id)  # whoever has overridden the guard once


def test_it_is_judged_as_the_name_was_so_far_and_else_as_its_study(
    play: Play, job: JobSpec, store: str, monkeypatch: pytest.MonkeyPatch, register: Register
) -> None:
    monkeypatch.setenv("MOETUNE_STORE", store)
    scored = override_job(job, {"name": "scored", "search.metric": SCORE, "search.mode": "max"}, "")
    play(job, ["finished"])
    play(scored, ["finished"])
    place = job.cluster
    registry = Registry(store, place.storage)
    # The fixture's registry lies in another folder: these need their files here.
    own = register(1.0, "scored", 0.9)
    mine = registry.register("scored", 1, own.folder, own.metrics)
    foreign = registry.register("elsewhere", 1, own.folder, own.metrics)

    def judged(version: Version, study: str | None = None) -> tuple[str, str]:
        wish = Wish(study or "home", "home" if study else None, version=version.id)
        found = wish.candidate(registry, place)
        assert found.version == version
        return found.metric, found.mode

    assert judged(mine) == (SCORE, "max"), "its own study's"
    assert judged(mine, "home") == (LOSS, "min"), "the one that was named"
    assert judged(foreign) == (LOSS, "min"), "nobody knows its study"
    promote(registry, mine, "home", actor="ann", metric=SCORE, mode="max")
    assert judged(foreign) == (SCORE, "max"), "what the champion was judged by"
    with pytest.raises(InputError, match="there is none in the registry"):
        Wish("home", version="abcd").candidate(registry, place)
    with pytest.raises(InputError, match=r"--version nowhere: is neither an id .* nor a folder"):
        Wish("home", version="nowhere").candidate(registry, place)
    with pytest.raises(InputError, match="study nowhere: no such study"):
        judged(mine, "nowhere")
