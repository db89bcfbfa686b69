"""The endpoint's key, and what a replica is told. No cluster is needed."""

from pathlib import Path

import pytest

from orchestrator.replica import EndpointSpec
from orchestrator.serving import read_key
from orchestrator.spec import ServeSpec
from workers.spec import InputError, ModelSpec


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOETUNE_API_KEY", "MOETUNE_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_key_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_key() is None
    (tmp_path / "key").write_text("from-the-file\n")
    monkeypatch.setenv("MOETUNE_API_KEY_FILE", str(tmp_path / "key"))
    assert read_key() == "from-the-file"
    monkeypatch.setenv("MOETUNE_API_KEY", "from-the-environment")
    assert read_key() == "from-the-environment"


@pytest.mark.parametrize("key", ["schlüssel-schlüssel", "two words of sixteen", "line\nline", "\n"])
def test_a_key_that_no_header_carries_is_refused_unseen(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOETUNE_API_KEY", key)
    with pytest.raises(InputError, match="printable ASCII") as caught:
        read_key()
    assert not key.strip() or key.strip()[:4] not in str(caught.value)


def test_an_empty_key_file_leaves_no_endpoint_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").touch()
    monkeypatch.setenv("MOETUNE_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(InputError, match="MOETUNE_API_KEY_FILE"):
        read_key()


def test_a_replica_holds_as_many_adapters_as_the_job_says() -> None:
    spec = EndpointSpec(
        serve=ServeSpec(max_adapters=3), model=ModelSpec(path="x"), store_url="", storage=""
    )
    assert spec.limits().max_adapters == 3
