"""The environment is set for Ray, and put back."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import pytest

from cluster import environment, local


@pytest.mark.usefixtures("processes")
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
    with environment.applied(environment.settings(token, local=True)):
        assert os.environ["RAY_TRAIN_METRICS_ENABLED"] == "1", "what the user has set wins"
        assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(token)
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0", "127.0.0.1 stays what it is"
        assert "RAY_AUTH_TOKEN" not in os.environ, "it would win over the file"
    assert dict(os.environ) == before


def test_looks_for_a_token_where_ray_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.token() is environment.showing_token() is None
    assert environment.authentication(None) == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert environment.token() == "home"
    assert environment.authentication(None) == {"RAY_AUTH_MODE": "token"}
    (tmp_path / "file").write_text("file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert environment.token() == "file"
    assert environment.showing_token() == f"cat {tmp_path}/file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert environment.token() == "variable"
    assert environment.showing_token() == "echo $RAY_AUTH_TOKEN"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert environment.token() is environment.showing_token() is None


def test_what_a_cluster_inherits_holds_no_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("MOETUNE_API_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "a-secret-of-the-operator")
    monkeypatch.setenv("MOETUNE_STORAGE", "runs")
    inherited = local._environment(tmp_path / "token")
    assert inherited["MOETUNE_STORAGE"] == "runs"
    assert "a-secret-of-the-operator" not in inherited.values()


def test_proxies_are_not_for_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "intranet.example, 127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "another.example")
    wanted = "intranet.example,127.0.0.1,another.example,localhost,::1"
    assert environment.direct() == {"no_proxy": wanted, "NO_PROXY": wanted}
    assert local._environment(tmp_path / "token")["no_proxy"] == wanted
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert getproxies()["http"] == "http://proxy.example:3128"
    monkeypatch.setenv("no_proxy", wanted)
    for host in ("127.0.0.1", "localhost", "::1", "intranet.example"):
        assert proxy_bypass(host)
    assert not proxy_bypass("elsewhere.example")
