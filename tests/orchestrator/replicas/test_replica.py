"""What a replica holds when it begins."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.serve import ServeSpec
from orchestrator.registry.models import Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.replicas.endpoint import EndpointSpec
from orchestrator.replicas.golden import EXACT, ROUNDED, GoldenToken
from orchestrator.replicas.golden_store import FirstAnswers
from orchestrator.replicas.replica import catch_up, hardware_kind, promised
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.models.base import load_base


@pytest.fixture(scope="module")
def folders(make_adapter: Callable[..., Path]) -> list[Path]:
    return [make_adapter(seed) for seed in range(61, 65)]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path}/moetune.db", tmp_path)


@pytest.fixture
def versions(registry: Registry, folders: list[Path]) -> list[Version]:
    """The first two champions of `home`, the third its canary; the fourth is nobody's."""
    made = [registry.register("s", trial, folder, {}) for trial, folder in enumerate(folders)]
    for version, how in ((made[0], {}), (made[1], {}), (made[2], {"canary": "10%"})):
        chosen = stage(**how)  # type: ignore[arg-type]
        forced: dict[str, Any] = {"reason": "test", "force": True, "actor": "test"}
        promote(registry, version, "home", metric="loss", stage=chosen, **forced)
    return made


def spec(model: Path, storage: Path, **serve: int) -> EndpointSpec:
    return EndpointSpec(
        serve=ServeSpec.model_validate(serve),
        model=ModelSpec(path=str(model), device="cpu"),
        store_url=f"sqlite:///{storage}/moetune.db",
        storage=str(storage),
    )


@pytest.fixture
def holds(tiny_model_dir: Path, tmp_path: Path) -> Iterator[Callable[..., set[str]]]:
    """holds(max_adapters=2): what a replica that starts now holds."""
    base = load_base(ModelSpec(path=str(tiny_model_dir), device="cpu"))
    engine = ContinuousEngine(base, Limits(max_batch_tokens=64, cache_tokens=256))

    def started(**serve: int) -> set[str]:
        for slot in engine.loaded():
            engine.unload(slot)
        catch_up(engine, spec(tiny_model_dir, tmp_path, **serve))
        return set(engine.loaded())

    yield started
    engine.close()


def test_a_replica_that_starts_later_holds_what_the_others_hold(
    holds: Callable[..., set[str]], versions: list[Version]
) -> None:
    before, champion, canary, _ = (version.id for version in versions)
    assert holds() == {before, champion, canary}
    assert holds(max_adapters=2) == {champion, canary}, "no room for the previous champion"


def test_a_replica_starts_without_what_it_cannot_load(
    holds: Callable[..., set[str]], versions: list[Version]
) -> None:
    weights = versions[1].folder / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"damaged")
    manifest = versions[2].folder / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text(manifest.read_text() + " ")
    assert holds() == {versions[0].id}


def test_a_replica_starts_without_a_registry(
    holds: Callable[..., set[str]], tmp_path: Path
) -> None:
    (tmp_path / "moetune.db").mkdir()  # SQLite cannot open a folder
    assert holds() == set()


def test_a_replica_is_to_answer_as_was_acknowledged_first(
    registry: Registry, versions: list[Version], tiny_model_dir: Path, tmp_path: Path
) -> None:
    served, answer = spec(tiny_model_dir, tmp_path), (GoldenToken(7, -0.5, 3.0),)
    first = FirstAnswers(registry, served.golden(), served.model)
    first.keep(versions[1].digest, {hardware_kind("cpu"): answer})
    loaded = [version.id for version in versions[:3]]
    [(adapter, kept)] = promised(loaded, served, hardware_kind("cpu"))
    assert (adapter.slot, adapter.folder, kept) == (loaded[1], str(versions[1].folder), answer)
    assert promised(loaded, served, "another machine") == ()
    assert promised(loaded, spec(tiny_model_dir, tmp_path / "gone"), hardware_kind("cpu")) == ()


@pytest.mark.parametrize(
    ("how", "gpus", "tolerance"),
    [
        ({"dtype": "float32"}, 1, EXACT),
        ({"device": "cpu"}, 0, EXACT),
        ({"device": "auto"}, 0, EXACT),
        ({"device": "auto"}, 1, ROUNDED),
        ({"dtype": "bfloat16"}, 0, ROUNDED),
        ({"quantization": "bnb_nf4"}, 0, ROUNDED),
    ],
)
def test_answers_may_differ_by_what_the_base_model_rounds(
    how: dict[str, str], gpus: int, tolerance: float, tmp_path: Path
) -> None:
    made = spec(tmp_path, tmp_path)
    model = made.model.model_copy(update=how)
    serve = made.serve.model_copy(update={"gpus_per_replica": gpus})
    served = made.model_copy(update={"model": model, "serve": serve})
    assert served.golden().tolerance == tolerance
