"""The environment is set for Ray, and put back."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from cluster import environment


def test_puts_everything_back(tmp_path: Path) -> None:
    """In a process of its own: the tests' cluster would see another token."""
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        apart.submit(set_and_put_back, tmp_path / "token").result()


def set_and_put_back(token: Path) -> None:
    import ray

    assert ray.__version__  # Imported: it is made to read the environment again.
    os.environ.update(RAY_TRAIN_METRICS_ENABLED="1", RAY_AUTH_TOKEN="theirs")
    os.environ.pop("RAY_CHDIR_TO_TRIAL_DIR", None)
    before = dict(os.environ)
    with environment.applied(environment.settings(token)):
        assert os.environ["RAY_TRAIN_METRICS_ENABLED"] == "1", "what the user has set wins"
        assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(token)
        assert "RAY_AUTH_TOKEN" not in os.environ, "it would win over the file"
    assert dict(os.environ) == before


def test_looks_for_a_token_where_ray_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.token() is None
    assert environment.authentication(None) == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert environment.token() == "home"
    assert environment.authentication(None) == {"RAY_AUTH_MODE": "token"}
    (tmp_path / "file").write_text("file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert environment.token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert environment.token() == "variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert environment.token() is None
