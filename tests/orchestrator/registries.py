"""Logs written by hand: a version is a letter here, and time goes by in minutes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.registry.models import Event, Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from workers.adapter.convert import import_folder

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "mixlora_llama" / "adapter"
LOSS = "validation/loss"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
Log = Callable[..., list[Event]]


@pytest.fixture
def log() -> Log:
    """log("promote a", "canary b 5%,100% every 30m", …): one event a minute."""
    return _log


def _log(*lines: str) -> list[Event]:
    return [_event(revision, *line.split(maxsplit=2)) for revision, line in enumerate(lines, 1)]


def _event(revision: int, action: Any, version: str, how: str = "") -> Event:
    evidence: dict[str, Any] = {}
    match action:
        case "canary":
            evidence = stage(plan=how).evidence()
        case "advance":
            evidence = {"step": int(how)}
        case "compare":
            evidence = {"requests": int(how)}
    return Event(
        name="home",
        revision=revision,
        action=action,
        version=version,
        previous=None,
        actor="a",
        reason="r",
        evidence=evidence,
        at=BEGIN + timedelta(minutes=revision),
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty one."""
    return Registry(f"sqlite:///{tmp_path / 'moetune.db'}", tmp_path)


@pytest.fixture
def versions(registry: Registry, tmp_path: Path) -> list[Version]:
    """Three, each better than the one before."""
    source = import_folder(GOLDEN, tmp_path / "adapter")
    even = {f"layers.{layer}.mlp": (0.25,) * 4 for layer in range(2)}
    lineage = {"data_digest": "d", "expert_load": even}
    losses = (3.0, 2.0, 1.0)
    return [
        registry.register("s", trial, source, {"validation": {"loss": loss}}, lineage)
        for trial, loss in enumerate(losses)
    ]


@pytest.fixture
def begin(registry: Registry, versions: list[Version]) -> Callable[..., Event]:
    """begin(1, canary="10%"): promote a version to `home`, as champion or otherwise."""

    def promoted(number: int, **how: Any) -> Event:
        chosen = stage(**how)
        return promote(registry, versions[number], "home", actor="ann", metric=LOSS, stage=chosen)

    return promoted
