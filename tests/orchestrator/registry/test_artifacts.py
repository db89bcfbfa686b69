"""What stands on disk: a trial's adapter and its version once, anything else as a copy."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.registry.models import Version
from orchestrator.registry.registry import Registry
from workers.adapter.convert import import_folder
from workers.adapter.raw import read_raw, write_raw
from workers.config.base import InputError
from workers.run.record import RunRecord

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "fixtures" / "golden" / "mixlora_llama" / "adapter"
WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def registry(storage: Path) -> Iterator[Registry]:
    opened = Registry(f"sqlite:///{storage.parent}/moetune.db", storage)
    yield opened
    opened.close()


def trial(storage: Path) -> Path:
    """A trial's adapter, where a study writes it."""
    return import_folder(GOLDEN, RunRecord(storage / "studies" / "s" / "trials" / "T000").adapter)


def register(registry: Registry, source: Path, loss: float = 1.0) -> Version:
    return registry.register("s", 0, source, {"validation": {"loss": loss}})


def bytes_on_disk(folder: Path) -> int:
    """As `du` counts: what has several names once."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def test_a_trials_adapter_and_its_version_stand_on_disk_once(
    registry: Registry, storage: Path
) -> None:
    adapter = trial(storage)
    before = bytes_on_disk(storage)
    version = register(registry, adapter)
    for name in (WEIGHTS, CONFIG):
        assert (version.folder / name).samefile(adapter / name)
    assert not (version.folder / MANIFEST).samefile(adapter / MANIFEST)
    grown = bytes_on_disk(storage) - before
    assert grown == (version.folder / MANIFEST).stat().st_size
    assert grown < (adapter / WEIGHTS).stat().st_size
    registry.verify(version)


def test_a_version_outlives_its_trial(registry: Registry, storage: Path) -> None:
    adapter = trial(storage)
    version = register(registry, adapter)
    content = (adapter / WEIGHTS).read_bytes()
    shutil.rmtree(storage / "studies")
    assert (version.folder / WEIGHTS).read_bytes() == content
    Registry(f"sqlite:///{storage.parent}/moetune.db", storage).verify(version)


def test_an_adapter_that_the_run_writes_again_is_another_file(
    registry: Registry, storage: Path
) -> None:
    adapter = trial(storage)
    version = register(registry, adapter)
    content = (version.folder / WEIGHTS).read_bytes()
    raw = read_raw(adapter)  # as a run saves it: whole, in the place of the old one
    write_raw(adapter, raw.values, raw.tensors, raw.manifest)
    assert not (version.folder / WEIGHTS).samefile(adapter / WEIGHTS)
    assert (version.folder / WEIGHTS).read_bytes() == content
    registry.verify(version)


def test_a_trials_files_are_read_only_once_a_version_has_them(
    registry: Registry, storage: Path
) -> None:
    adapter = trial(storage)
    version = register(registry, adapter)
    for name in (WEIGHTS, CONFIG):
        assert not (adapter / name).stat().st_mode & 0o222
        assert not (version.folder / name).stat().st_mode & 0o222


def test_who_writes_into_it_all_the_same_is_found_out(registry: Registry, storage: Path) -> None:
    adapter = trial(storage)
    version = register(registry, adapter)
    (adapter / CONFIG).chmod(0o644)
    with (adapter / CONFIG).open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match="was altered"):
        registry.verify(version)


def test_an_adapter_from_elsewhere_is_copied(registry: Registry, tmp_path: Path) -> None:
    source = import_folder(GOLDEN, tmp_path / "mine")
    version = register(registry, source)
    assert not (version.folder / WEIGHTS).samefile(source / WEIGHTS)
    content = (version.folder / WEIGHTS).read_bytes()
    assert (source / WEIGHTS).stat().st_mode & 0o200, "it stays its owner's to write to"
    (source / WEIGHTS).write_bytes(b"other")
    assert (version.folder / WEIGHTS).read_bytes() == content
    registry.verify(version)


def test_a_path_that_leads_out_of_the_studies_is_elsewhere(
    registry: Registry, storage: Path, tmp_path: Path
) -> None:
    source = import_folder(GOLDEN, tmp_path / "mine")
    (storage / "studies").mkdir(parents=True)
    (storage / "studies" / "s").symlink_to(tmp_path)
    version = register(registry, storage / "studies" / "s" / "mine")
    assert not (version.folder / WEIGHTS).samefile(source / WEIGHTS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to somebody else")
def test_what_belongs_to_somebody_else_is_copied(registry: Registry, storage: Path) -> None:
    adapter = trial(storage)
    os.chown(adapter / WEIGHTS, 12345, -1)
    version = register(registry, adapter)
    assert not (version.folder / WEIGHTS).samefile(adapter / WEIGHTS)
    assert (adapter / WEIGHTS).stat().st_mode & 0o200
    registry.verify(version)


def test_on_another_device_it_is_copied(registry: Registry, storage: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == storage.parent.stat().st_dev:
        pytest.skip("there is no second device here")
    with tempfile.TemporaryDirectory(prefix="moetune-test-", dir=memory) as elsewhere:
        storage.mkdir()
        (storage / "studies").symlink_to(elsewhere)
        adapter = trial(storage)
        version = register(registry, adapter)
        assert version.folder.stat().st_dev != adapter.stat().st_dev
        assert (version.folder / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    registry.verify(version)


def test_several_versions_of_one_adapter_share_it_too(registry: Registry, storage: Path) -> None:
    adapter = trial(storage)
    one, other = register(registry, adapter, 1.0), register(registry, adapter, 2.0)
    assert one.id != other.id
    assert (one.folder / WEIGHTS).samefile(other.folder / WEIGHTS)
    shutil.rmtree(one.folder)
    registry.verify(other)


def test_a_damaged_trial_becomes_no_version_and_stays_writable(
    registry: Registry, storage: Path
) -> None:
    adapter = trial(storage)
    (adapter / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is not the file that its manifest describes"):
        register(registry, adapter)
    assert (adapter / WEIGHTS).stat().st_mode & 0o200
    assert list((storage / "versions").iterdir()) == []
