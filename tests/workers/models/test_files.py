"""Where a base's files lie: its folder, or the hub's copy here."""

from pathlib import Path

import pytest

from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.models.files import base_folder

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, with one model, on a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--somebody--a-model"
    (model / "snapshots" / REVISION).mkdir(parents=True)
    (model / "snapshots" / REVISION / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    return tmp_path


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert base_folder(ModelSpec(path=str(tmp_path))) == tmp_path


@pytest.mark.parametrize("revision", [None, REVISION])
def test_the_hubs_copy_is_found(hub: Path, revision: str | None) -> None:
    found = base_folder(ModelSpec(path="somebody/a-model", revision=revision))
    assert found == hub / "models--somebody--a-model" / "snapshots" / REVISION


@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match=r"model\.path: somebody/another: no such folder, and"):
        base_folder(ModelSpec(path="somebody/another"))
