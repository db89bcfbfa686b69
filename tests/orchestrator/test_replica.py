"""A replica without Ray: what it holds when it begins, and its word on a version."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.endpoint import EndpointSpec
from orchestrator.promotion import promote
from orchestrator.registry import Registry, Version
from orchestrator.replica import Replica
from orchestrator.rollout.plan import stage
from orchestrator.spec import ServeSpec
from workers.engine.request import Adapter
from workers.spec import InputError, ModelSpec


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


@contextmanager
def replica(model: Path, storage: Path, **serve: Any) -> Iterator[Replica]:
    limits = {"max_batch_tokens": 64, "cache_tokens": 256}
    made = Replica(
        EndpointSpec(
            serve=ServeSpec.model_validate({**limits, **serve}),
            model=ModelSpec(path=str(model), device="cpu"),
            store_url=f"sqlite:///{storage}/moetune.db",
            storage=str(storage),
        )
    )
    try:
        yield made
    finally:
        made._engine.close()


def test_a_replica_that_starts_later_holds_what_the_others_hold(
    tiny_model_dir: Path, tmp_path: Path, versions: list[Version]
) -> None:
    ids = [version.id for version in versions]
    with replica(tiny_model_dir, tmp_path) as one:
        assert set(one._engine.loaded()) == {ids[0], ids[1], ids[2]}
    with replica(tiny_model_dir, tmp_path, max_adapters=2) as one:
        assert set(one._engine.loaded()) == {ids[1], ids[2]}, "no room for the previous champion"


def test_a_replica_starts_without_what_it_cannot_load(
    tiny_model_dir: Path, tmp_path: Path, versions: list[Version]
) -> None:
    weights = versions[1].folder / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"damaged")
    with replica(tiny_model_dir, tmp_path) as one:
        assert set(one._engine.loaded()) == {versions[0].id, versions[2].id}


def test_a_replica_starts_without_a_registry(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "moetune.db").mkdir()
    with replica(tiny_model_dir, tmp_path) as one:
        assert one._engine.loaded() == ()
        assert asyncio.run(one.ready())


def test_its_word_on_a_version(
    tiny_model_dir: Path, tmp_path: Path, versions: list[Version]
) -> None:
    adapter = Adapter(versions[3].id, str(versions[3].folder))
    with replica(tiny_model_dir, tmp_path) as one:
        golden = EndpointSpec(
            serve=ServeSpec(), model=ModelSpec(path="m"), store_url="", storage=""
        ).golden()
        asyncio.run(one.load(adapter))
        said = asyncio.run(one.check(adapter, golden))
        assert (said.digest, len(said.tokens)) == (versions[3].digest, 8)
        asyncio.run(one.unload(adapter.slot))
        assert adapter.slot not in one._engine.loaded()
        with pytest.raises(InputError, match="gone"):
            asyncio.run(one.check(Adapter("gone", str(tmp_path / "gone")), golden))
