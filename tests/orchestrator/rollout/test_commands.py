"""The commands, on a registry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config.cluster import ClusterSpec
from orchestrator.registry.models import Event, Version
from orchestrator.registry.presence import Presence
from workers.config.base import InputError

Begin = Callable[..., Event]
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run("history", "home"): what the command prints; its InputError is raised."""

    def ran(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--storage", str(tmp_path)])
        if isinstance(result.exception, InputError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return ran


def test_history_tells_every_event_with_its_evidence(run: Run, begin: Begin) -> None:
    begin(0)
    begin(1, plan="5%,100% every 30m")
    run("rollback", "home", "--reason", "too slow")
    lines = run("history", "home").splitlines()
    assert len(lines) == 4
    assert "validation/loss 3" in lines[1]
    assert "plan 5%, 100% every 30m; validation/loss 2, champion's 3" in lines[2]
    assert "abort" in lines[3]
    assert "too slow" in lines[3]
    events = json.loads(run("history", "home", "--json"))
    assert [event["action"] for event in events] == ["promote", "canary", "abort"]
    assert events[1]["evidence"]["share"] == 0.05


def test_rollback_and_abort_say_what_they_have_done(
    run: Run, begin: Begin, versions: list[Version]
) -> None:
    a, b, c = (version.id for version in versions)
    begin(0)
    begin(1)
    begin(2, shadow=True)
    assert run("abort", "home") == f"home@{c} has ended; home stays home@{b}\n"
    assert json.loads(run("rollback", "home", "--json"))["version"] == a
    for words, why in (
        (("rollback", "home"), "no earlier champion"),
        (("abort", "home"), "no canary and no shadow"),
        (("history", "other"), "nothing was promoted to this name; names are: home"),
    ):
        with pytest.raises(InputError, match=why):
            run(*words)


def test_models_deletes_versions_and_names(run: Run, begin: Begin, versions: list[Version]) -> None:
    a, b, c = (version.id for version in versions)
    for number in range(3):
        begin(number)
    assert run("models", "--delete", a[:8], "--reason", "old") == (
        f"home@{a} is deleted; home stays home@{c}\n"
    )
    assert run("history", "home").splitlines()[-1].split()[-1] == "old"
    for words, why in (
        (("models", "--delete", a), f"version {a}: there is none in the registry"),
        (("models", "--delete", b), f"version {b}: is what a rollback leads back to for home"),
        (("models", "--delete", c), f"version {c}: is the champion of home"),
        (("models", "--delete", "hom"), "hom: no name and no version; names are: home"),
    ):
        with pytest.raises(InputError, match=why):
            run(*words)
    told = json.loads(run("models", "--delete", "home", "--json"))
    assert told["deleted"] == "home"
    assert [event["action"] for event in told["events"]] == ["delete"]
    assert json.loads(run("models", "--json"))["names"] == {}
    [_, line] = run("history", "home").splitlines()
    assert line.endswith("4 events deleted")
    assert run("models", "--delete", b) == f"version {b} is deleted\n"


def test_who_deletes_a_name_is_told_why_nothing_is_to_be_seen(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed endpoint is told by its silence, which takes its time."""
    monkeypatch.setattr("orchestrator.disk.deletion.is_served", lambda *_: False)
    place = ClusterSpec(storage=str(tmp_path))
    words = ["models", "--delete", "home", "--json", "--storage", str(tmp_path)]
    for options, said in (
        ([], "looking whether the endpoint that says it serves home is still there (up to 20 s)\n"),
        (["--force"], ""),
    ):
        begin(0)
        Presence(place.store_url(), lambda: ["home"]).beat()
        result = CliRunner().invoke(app, [*words, *options])
        assert result.exit_code == 0, result.output
        assert result.stderr == said
        assert json.loads(result.stdout)["deleted"] == "home"


def test_models_show_what_stands_behind_each_name(
    run: Run, begin: Begin, versions: list[Version]
) -> None:
    a, b, c = (version.id for version in versions)
    begin(0)
    begin(1, canary="2.5%")
    begin(2, shadow=True)
    [_, line] = run("models").splitlines()
    assert line.split() == ["home", a, "s", "0", b, "2.5%", c]
    known: Any = json.loads(run("models", "--json"))["names"]["home"]
    assert (known["id"], known["study"]) == (a, "s")
    assert known["rollout"]["canary"]["version"] == b
