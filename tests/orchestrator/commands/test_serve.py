"""`moetune serve` and its like: what is wrong is said before a cluster starts; SIGTERM ends all."""

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cluster.session import Session
from orchestrator.cli import app
from orchestrator.config.cluster import ClusterSpec
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.serve.proxy import running_address
from orchestrator.serve.served_base import served_base
from tests.forked_workers import unforked
from tests.served import serving
from tests.tiny import write_adapter
from workers.adapter.manifest import read_manifest, write_manifest
from workers.config.base import InputError, override
from workers.config.model import ModelSpec
from workers.config.train import TrainSpec


@dataclass(frozen=True)
class Home:
    """A storage folder whose name `home` has a champion, and the champion's base."""

    base: Path
    storage: str

    def refused(self, *words: str) -> str:
        """What a command says that is refused before it asks for a cluster."""
        result = CliRunner().invoke(app, [*words, "--storage", self.storage])
        assert isinstance(result.exception, InputError), result.exception
        return str(result.exception)


@pytest.fixture
def home(
    tiny_model_dir: Path,
    make_spec: Callable[..., TrainSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Home:
    """Without a cluster: whoever asks for one fails."""

    def none(*_: Any) -> None:
        raise AssertionError("a cluster was asked for")

    base = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    adapter = write_adapter(base, tmp_path / "adapter", seed=1, num_experts=1, top_k=1)
    spec = override(make_spec(), {"model.path": str(base)}, "test").model_dump(mode="json")
    manifest = read_manifest(adapter)
    assert manifest is not None
    write_manifest(adapter, manifest.model_copy(update={"spec": spec}))
    place = ClusterSpec(storage=str(tmp_path / "runs"))
    registry = Registry(place.store_url(), place.storage)
    version = registry.register("study", 0, adapter, {"validation": {"loss": 1.0}})
    promote(registry, version, "home", actor="test", metric="validation/loss")
    registry.close()
    monkeypatch.setattr("cluster.session.session", none)
    monkeypatch.setattr("orchestrator.retraining.signals.session", none)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Home(base, place.storage)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_base_that_has_become_another_is_refused(home: Home) -> None:
    model = AutoModelForCausalLM.from_pretrained(home.base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(home.base)
    said = home.refused("serve", "home")
    assert said.startswith(f"model.path: {home.base}: holds an adapter")


COMMANDS = ("serve", "evaluate", "experts", "watch")


def words(command: str, folder: Path) -> tuple[str, ...]:
    """A command that loads the base of `home`, with rows that are there."""
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "a", "target": "b"}\n')
    if command == "watch":
        rule = {"data": str(rows), "limit": 0.8}
        values = {"job": "smoke", "data": str(rows), "when": {"quality": rule}}
        (folder / "policy.yaml").write_text(yaml.safe_dump(values))
        return command, "home", "--policy", str(folder / "policy.yaml")
    return (command, "home", *(("--data", str(rows)) if command != "serve" else ()))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_base_that_has_moved_is_asked_for(home: Home, command: str, tmp_path: Path) -> None:
    home.base.rename(tmp_path / "moved")
    said = home.refused(*words(command, tmp_path))
    assert re.fullmatch(
        rf"home(@[0-9a-f]{{12}})?: its base model base is not at {home.base} any more; "
        "--base PATH says where it is now",
        said,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_base_says_where_it_is_now(
    home: Home, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next thing that they want is a cluster; `home` has none."""
    moved = home.base.rename(tmp_path / "moved")
    asked = [*words(command, tmp_path), "--storage", home.storage]
    asked += ["--set", "port=0"] if command == "serve" else []
    if command == "watch":
        asked += ["--once", "--url", "http://127.0.0.1:9"]
    for given, variable in ((["--base", str(moved)], {}), ([], {"MOETUNE_BASE": str(moved)})):
        result = CliRunner().invoke(app, asked + given, env=variable)
        assert isinstance(result.exception, AssertionError), result.exception
        assert str(result.exception) == "a cluster was asked for"


@pytest.mark.parametrize("command", COMMANDS)
def test_another_base_is_refused_by_its_digest(
    home: Home, command: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    other = Path(shutil.copytree(tiny_model_dir, tmp_path / "other"))
    model = AutoModelForCausalLM.from_pretrained(other)
    model.get_input_embeddings().weight.data.mul_(1.5)
    model.save_pretrained(other)
    for lost in (False, True):
        if lost:
            shutil.rmtree(home.base)
        said = home.refused(*words(command, tmp_path), "--base", str(other))
        assert re.fullmatch(
            rf"--base {other}: is another base model than base, which home(@[0-9a-f]{{12}})? was "
            "trained on: the weights differ",
            said,
        )


def test_a_folder_that_is_no_base_is_refused(home: Home, tmp_path: Path) -> None:
    for folder, why in (("lost", "there is no such folder"), ("runs", "is no folder of a base")):
        said = home.refused("serve", "home", "--base", str(tmp_path / folder))
        assert why in said
        assert str(tmp_path / folder) in said


def test_a_manifest_of_old_names_its_base_by_the_path_alone(home: Home, tmp_path: Path) -> None:
    """Without a digest any base is taken whose shapes fit: nothing is known of it."""
    place = ClusterSpec(storage=home.storage)
    registry = Registry(place.store_url(), place.storage)
    adapter = tmp_path / "adapter"
    path = adapter / "manifest.json"
    values = json.loads(path.read_text())
    assert values["base"]["name"] == "base"
    for known in ({"path": str(home.base)}, {**values["base"]}):
        known.pop("name", None)
        path.write_text(json.dumps({**values, "base": known}))
        version = registry.register("study", 0, adapter, {"validation": {"loss": 1.0}})
        assert registry.manifest(version).base.name == "base"
        name = f"old{len(known)}"
        promote(registry, version, name, actor="t", metric="validation/loss")
        at = str(home.base)
        found = served_base(place.store_url(), place.storage, name, at=at)
        before = served_base(place.store_url(), place.storage, name)
        assert found.model.path == at == before.model.path
    registry.close()


def test_lost_rows_are_refused(home: Home, tmp_path: Path) -> None:
    for command in ("evaluate", "experts"):
        assert "lost.jsonl" in home.refused(command, "home", "--data", "lost.jsonl")
    rule = {"data": "right.jsonl", "limit": 0.8}
    values = {"job": "smoke", "data": "new.jsonl", "when": {"quality": rule}}
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(values))
    assert f"{tmp_path}/right.jsonl" in home.refused("watch", "home", "--policy", str(policy))
    policy.write_text(yaml.safe_dump({**values, "job": "lost.yaml"}))
    assert "lost.yaml: cannot be read" in home.refused("watch", "home", "--policy", str(policy))


def test_a_host_without_a_key_and_a_taken_port_are_refused(home: Home, taken: int) -> None:
    beyond = home.refused("serve", "home", "--set", "host=0.0.0.0", "--set", "port=0")
    assert "serve.host is 0.0.0.0, beyond loopback: set a key in MOETUNE_API_KEY" in beyond
    wanted = f"serve.port: 127.0.0.1:{taken} cannot be listened on"
    for field in ("port", "serve.port"):
        assert wanted in home.refused("serve", "home", "--set", f"{field}={taken}")


def test_the_endpoint_is_as_the_job_says(home: Home, taken: int, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    values = yaml.safe_load(Path("orchestrator/jobs/smoke.yaml").read_text())
    job.write_text(yaml.safe_dump({**values, "serve": {"port": taken, "host": "127.0.0.2"}}))
    with socket.create_server(("127.0.0.2", taken)):
        said = home.refused("serve", "home", "--job", str(job))
    assert f"serve.port: 127.0.0.2:{taken} cannot be listened on" in said
    also = ("--job", str(job), "--set", "serve.host=127.0.0.1")
    assert f"serve.port: 127.0.0.1:{taken}" in home.refused("serve", "home", *also)


def test_a_base_whose_id_is_a_name_is_refused_without_a_cluster(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Requests for `home` could mean either."""
    bases = [Path(shutil.copytree(tiny_model_dir, tmp_path / name)) for name in ("base", "home")]
    place = ClusterSpec(storage=str(tmp_path / "runs"))
    registry = Registry(place.store_url(), place.storage)
    for base, name in zip(bases, ("home", "other"), strict=True):
        adapter = write_adapter(base, tmp_path / f"of-{name}", seed=len(name), num_experts=2)
        version = registry.register("study", 0, adapter, {"validation": {"loss": 1.0}})
        promote(
            registry,
            version,
            name,
            actor="t",
            metric="validation/loss",
            force=True,
            reason="t",
        )
    registry.close()
    nowhere = ["--address", "127.0.0.1:1"]
    result = CliRunner().invoke(app, ["serve", "other", "--storage", place.storage, *nowhere])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("serve: home is what requests call the base")
    with pytest.raises(InputError, match="serve: home is what"):
        served_base(place.store_url(), place.storage, None, ModelSpec(path=str(bases[1])))


def environment() -> dict[str, str]:
    """Ours without what would lead to another cluster, storage or key."""
    ours = ("RAY_", "MOETUNE_")
    return {name: text for name, text in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def served(make_adapter: Callable[..., Path], tmp_path: Path) -> str:
    """A storage folder whose name `home` has a champion."""
    place = ClusterSpec(storage=str(tmp_path))
    registry = Registry(place.store_url(), place.storage)
    version = registry.register(
        "study", 0, make_adapter(31, num_experts=1, top_k=1), {"validation": {"loss": 1.0}}
    )
    promote(registry, version, "home", actor="test", metric="validation/loss")
    registry.close()
    return place.storage


def test_sigterm_ends_answers_endpoint_and_serve_on_a_cluster_that_stays(
    ray_cluster: Session, served: str
) -> None:
    body = {"model": "home", "prompt": "hello", "max_tokens": 200, "stream": True}
    words = ("home", "--storage", served)
    with serving(*words, "--address", ray_cluster.address, env=environment()) as (server, url):
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = (one for one in answer.iter_lines() if one)
            events = [next(lines)]
            server.send_signal(signal.SIGTERM)
            events += lines
        said = server.communicate(timeout=120)
    assert server.returncode == 143, said
    assert "Traceback" not in said[1]
    assert events[-1] == "data: [DONE]", "the answer ended whole"
    assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    assert running_address() is None


def test_a_base_that_has_moved_is_served(ray_cluster: Session, home: Home, tmp_path: Path) -> None:
    moved = str(home.base.rename(tmp_path / "moved"))
    words = ("home", "--storage", home.storage, "--address", ray_cluster.address, "--base", moved)
    with serving(*words, env=environment()) as (server, url):
        asked = {"prompt": "hello", "max_tokens": 4}
        for model in ("home", "moved"):
            body = {"model": model, **asked}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
            assert answer.is_success, answer.text
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=120)


def test_a_name_that_is_served_is_deleted_by_force_and_then_unknown(
    ray_cluster: Session, served: str
) -> None:
    body = {"model": "home", "prompt": "hello", "max_tokens": 2}
    words = ["models", "--delete", "home", "--storage", served]
    place = ("--storage", served, "--address", ray_cluster.address)
    with serving("home", *place, env=environment()) as (server, url):
        said = CliRunner().invoke(app, words)
        assert isinstance(said.exception, InputError), said.output
        assert str(said.exception).startswith("home: an endpoint serves it")
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).is_success
        said = CliRunner().invoke(app, [*words, "--force", "--reason", "over"])
        assert said.output == "home is deleted with its history (1 event)\n"
        for _ in range(600):
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
            if not answer.is_success:
                break
            time.sleep(0.1)
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["code"] == "model_not_found"
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=120)


@pytest.mark.usefixtures("processes")
def test_a_dead_head_ends_serve(served: str) -> None:
    with serving("home", "--storage", served, env=unforked(environment())) as (server, _):
        ours = psutil.Process(server.pid).children(recursive=True)
        [head] = [one for one in ours if one.name() == "gcs_server"]
        head.kill()
        said = server.communicate(timeout=30)
    assert server.returncode == 2, said
    assert "the cluster's head is gone" in said[1].splitlines()[-1]
    assert "Traceback" not in said[1]
