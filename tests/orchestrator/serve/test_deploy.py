"""The endpoint on a cluster, through OpenAI's own client: one deployment for all of it."""

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from safetensors.torch import load_file, save_file

from cluster.environment import SERVE_MIDDLEWARE
from cluster.errors import ClusterError
from cluster.session import Session
from orchestrator.auth.key_store import KeyStore
from orchestrator.auth.keys import Caller, Key, key_hash
from orchestrator.auth.made_keys import MadeKeys
from orchestrator.client import Client
from orchestrator.config.serve import ServeSpec
from orchestrator.registry.models import Version
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import promote
from orchestrator.registry.registry import Registry
from orchestrator.replicas.endpoint import EndpointSpec
from orchestrator.serve.deploy import Endpoint, build, deploy, undeploy
from orchestrator.serve.proxy import free_port, running_address
from orchestrator.serve.served_base import served_base
from orchestrator.telemetry.series import OF_ENGINES, OF_REQUESTS, WRONG_KEYS
from tests.orchestrator.prometheus import value
from workers.config.base import InputError
from workers.config.model import ModelSpec

KEY = "0123456789abcdef-test"
SPEC = ServeSpec(
    port=0, max_batch_tokens=128, cache_tokens=512, max_new_tokens=448, max_queued_requests=3
)
HELLO: Any = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Shop:
    """A deployed endpoint and the registry behind it."""

    endpoint: Endpoint
    registry: Registry
    versions: list[Version]
    client: openai.OpenAI

    def promote(self, version: Version, **how: Any) -> None:
        promote(
            self.registry,
            version,
            "home",
            actor="test",
            metric="validation/loss",
            reason="test",
            force=True,
            stage=stage(**how),
        )

    def now(self) -> str:
        """The version that answers."""
        return str(self.text(max_tokens=1).system_fingerprint)

    def change(self) -> tuple[str, str]:
        """Another champion, of the first two; returns the old one and the new one, who answers."""
        old = self.now()
        new = next(version for version in self.versions[:2] if version.id != old)
        self.promote(new)
        begun = time.monotonic()
        while self.now() != new.id:
            assert time.monotonic() - begun < 30
        return old, new.id

    def rollouts(self, path: str = "", **body: Any) -> Any:
        """GET the state of home, or POST to it."""
        url = f"{self.endpoint.url}/moetune/v1/rollouts/home{path}"
        headers = {"Authorization": f"Bearer {KEY}"}
        method = "POST" if path else "GET"
        response = httpx.request(method, url, headers=headers, json=body or None, timeout=30)
        return response.raise_for_status().json()

    def text(self, model: str = "home", **fields: Any) -> Any:
        return self.client.completions.create(
            **{"model": model, "prompt": "hello", "temperature": 0, "max_tokens": 24, **fields}
        )


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]
) -> tuple[str, Path, list[Version]]:
    folder = tmp_path_factory.mktemp("storage")
    url = f"sqlite:///{folder}/moetune.db"
    registry = Registry(url, folder)
    versions = [registry.register("study", seed, make_adapter(seed), {}) for seed in (31, 32, 33)]
    return url, folder, versions


@pytest.fixture(scope="module")
def shop(ray_cluster: Session, store: tuple[str, Path, list[Version]]) -> Iterator[Shop]:
    url, folder, versions = store
    registry = Registry(url, folder)
    client = openai.OpenAI(api_key=KEY, base_url="http://unknown", max_retries=0, timeout=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOETUNE_API_KEY", KEY)
        Shop(Endpoint("", "", True), registry, versions, client).promote(versions[0])
        endpoint = deploy(SPEC, served_base(url, folder, "home"))
        yield Shop(endpoint, registry, versions, client.copy(base_url=endpoint.openai_url))
        undeploy()


def test_the_endpoint_listens_on_loopback_and_names_its_models(shop: Shop) -> None:
    assert shop.endpoint.url.startswith("http://127.0.0.1:")
    assert [model.id for model in shop.client.models.list()] == ["tiny-llama", "home"]
    assert httpx.get(f"{shop.endpoint.url}/ready").json() == {"ready": True, "registry": True}


def test_chat_completion_and_streams_agree(shop: Shop) -> None:
    fields: dict[str, Any] = {"model": "home", "messages": HELLO, "temperature": 0}
    whole = shop.client.chat.completions.create(**fields, max_completion_tokens=16)
    stream = shop.client.chat.completions.create(
        **fields, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = list(stream)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert last.usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 16
    assert whole.model.startswith("home@")
    streamed = shop.text(stream=True)
    assert "".join(piece.choices[0].text for piece in streamed) == shop.text().choices[0].text


def test_base_and_versions_answer_differently(shop: Shop) -> None:
    base, champion = shop.text("tiny-llama"), shop.text("home")
    assert base.choices[0].text != champion.choices[0].text
    assert (base.model, base.system_fingerprint) == ("tiny-llama", "base")
    again = shop.text(champion.model)
    assert (again.model, again.choices[0].text) == (champion.model, champion.choices[0].text)


def test_prometheus_reads_requests_tokens_and_engines(shop: Shop) -> None:
    """Every series that says something when one answer has been given."""
    shop.text()
    with pytest.raises(openai.AuthenticationError):
        shop.client.copy(api_key="a-wrong-one").models.list()
    champion = {"name": "home", "version": shop.versions[0].id, "role": "served"}
    assert value("ray_moetune_requests_total", **champion, outcome="ok")
    for one in OF_REQUESTS:
        assert value(one.exported[-1], **champion), one.name
    assert value(WRONG_KEYS.exported[0])
    for one in OF_ENGINES:
        there = value(one.exported[0], lambda found: found is not None, replica="0")
        assert there is not None, one.name
    assert value("ray_moetune_engine_adapters", replica="0")


def test_refusals_are_openais(shop: Shop) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        shop.text("nobody")
    with pytest.raises(openai.BadRequestError, match="best_of: only its default is supported"):
        shop.text(best_of=2)
    with pytest.raises(openai.BadRequestError, match="together they may have"):
        shop.text(prompt="x" * 400, max_tokens=200)
    with pytest.raises(openai.AuthenticationError, match="key"):
        shop.client.copy(api_key="wrong").models.list()
    for path in ("models", "completions"):
        assert httpx.get(f"{shop.endpoint.openai_url}/{path}").status_code in (401, 405)


HEADERS_OF_THE_PROXY = (
    "x-request-id",
    "X-Session-ID",
    "x_session_id",
    "serve-multiplexed-model-id",
    "serve_multiplexed_model_id",
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
)
"""What Ray Serve's proxy reads itself, before the gateway does."""


def test_a_header_that_is_no_text_is_refused_and_service_goes_on(shop: Shop) -> None:
    with httpx.Client(base_url=shop.endpoint.url, timeout=30) as web:
        for name, path, odd in itertools.product(
            (*HEADERS_OF_THE_PROXY, "x-other", "authorization"),
            ("/health", "/v1/models", "/nowhere", "/-/healthz"),
            (b"\xff", b"a\xc3", b"\xed\xa0\x80"),
        ):
            refused = web.get(path, headers=[(name.encode(), odd)])
            assert refused.status_code == 400, (name, path, odd, refused.text)
            error = refused.json()["error"]
            assert error["message"] == f"the header {name.lower()} is not UTF-8"
            assert error["type"] == "invalid_request_error"
        for name, text in itertools.product(
            (*HEADERS_OF_THE_PROXY, "x-other"),
            (b"", b"-1", b"nan", b"1e400", b"9" * 5000, "é🙂".encode()),
        ):
            answer = web.get("/health", headers=[(name.encode(), text)])
            assert answer.status_code == 200, (name, text, answer.text)
    assert shop.text().choices[0].text


def test_a_websocket_is_refused(shop: Shop) -> None:
    """There is none; with such a header neither."""
    upgrade = {
        b"connection": b"Upgrade",
        b"upgrade": b"websocket",
        b"sec-websocket-version": b"13",
        b"sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
    }
    for odd in ({}, {b"x-request-id": b"\xff"}):
        answer = httpx.get(f"{shop.endpoint.url}/health", headers=[*(upgrade | odd).items()])
        assert answer.status_code == 403


def test_a_body_or_head_without_end_is_refused_by_the_proxy(shop: Shop) -> None:
    """Whoever sends it: the proxy has read none of it beyond the limit, and serves the others."""
    limit = SPEC.limits.max_body_bytes
    path = "/moetune/v1/rollouts/home/rollback"
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    chunk = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    for begun, endless, status in (
        (f"{head}content-length: {800 * 2**20}\r\n\r\n", b"x" * 2**16, b"413"),
        (f"{head}transfer-encoding: chunked\r\n\r\n", chunk, b"401 413"),
        (f"{head}x: ", b"x" * 2**16, b"431"),
    ):
        answer, taken = flood(shop.endpoint.url, begun.encode(), endless)
        assert answer.startswith(b"HTTP/1.1 "), (begun, answer)
        assert answer.split()[1] in status.split()
        # What lies in the sockets' buffers between here and there is not counted by the server.
        assert taken < limit + 16 * 2**20
        assert shop.now()


def flood(url: str, begun: bytes, endless: bytes) -> tuple[bytes, int]:
    """What is answered, and how many bytes could be sent before."""
    host, port = url.removeprefix("http://").split(":")
    taken = 0
    with socket.create_connection((host, int(port)), 30) as wire:
        wire.sendall(begun)
        while taken < 100 * 2**20:
            wire.settimeout(0.01)
            try:
                return wire.recv(2**16), taken
            except TimeoutError:
                wire.settimeout(30)
            with suppress(OSError):  # closed: what was answered can be read
                wire.sendall(endless)
                taken += len(endless)
    return b"", taken


def test_a_full_queue_is_a_rate_limit(shop: Shop) -> None:
    def one(_: int) -> Any:
        try:
            return shop.text(prompt="x" * 60, max_tokens=200)
        except openai.RateLimitError as error:
            return error

    with ThreadPoolExecutor(7) as pool:
        results = list(pool.map(one, range(7)))
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert refused
    assert all(error.response.headers["retry-after"] == "1" for error in refused)
    assert len([r for r in results if not isinstance(r, Exception)]) >= 4  # one runs, three wait


def test_a_client_that_goes_away_frees_its_place(shop: Shop) -> None:
    """Each of these requests takes the whole cache, so the next one waits for its end."""

    def begin() -> Any:
        return shop.client.chat.completions.create(
            model="tiny-llama", messages=HELLO, temperature=0, max_tokens=440, stream=True
        )

    begun = time.monotonic()
    assert sum(1 for _ in begin()) > 400
    whole = time.monotonic() - begun
    stream = begin()
    next(stream)
    stream.close()
    begun, stream = time.monotonic(), begin()
    next(stream)
    stream.close()
    assert time.monotonic() - begun < whole / 3


def test_promotions_under_load_fail_nothing_and_show_within_a_second(shop: Shop) -> None:
    expected = {v.id: shop.text(f"home@{v.id}").choices[0].text for v in shop.versions[:1]}
    shop.promote(shop.versions[1])
    shop.promote(shop.versions[0])
    expected[shop.versions[1].id] = shop.text(f"home@{shop.versions[1].id}").choices[0].text
    assert len(set(expected.values())) == 2
    seen: list[tuple[float, Any]] = []
    failures: list[Exception] = []
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            begun = time.monotonic()
            try:
                seen.append((begun, shop.text()))
            except Exception as error:
                failures.append(error)

    waits = []
    with ThreadPoolExecutor(2) as pool:
        loops = [pool.submit(loop) for _ in range(2)]
        for turn in range(6):
            version = shop.versions[(turn + 1) % 2]
            shop.promote(version)
            begun = time.monotonic()
            while not any(t >= begun and r.system_fingerprint == version.id for t, r in seen):
                assert time.monotonic() - begun < 30
                time.sleep(0.01)
            waits.append(
                min(t for t, r in seen if t >= begun and r.system_fingerprint == version.id) - begun
            )
        done.set()
        for future in loops:
            future.result()
    assert not failures
    for _, reply in seen:
        assert reply.choices[0].text == expected[reply.system_fingerprint]
        assert reply.model == f"home@{reply.system_fingerprint}"
    print(f"{len(seen)} answers; promotions showed after {sorted(waits)} s")
    assert sorted(waits)[len(waits) // 2] < 2


def test_a_canary_meets_its_users_and_rollbacks_are_done_when_they_return(shop: Shop) -> None:
    (before, champion), canary = shop.change(), shop.versions[2].id
    users = [f"user {number}" for number in range(20)]

    def met() -> list[str]:
        return [shop.text(max_tokens=1, user=user).system_fingerprint for user in users]

    shop.promote(shop.versions[2], canary="50%")
    begun = time.monotonic()
    while canary not in met():
        assert time.monotonic() - begun < 30
    seen = met()
    assert set(seen) == {champion, canary}
    assert met() == seen, "everybody stays where they were"
    state = shop.rollouts()
    assert (state["champion"], state["canary"]["version"]) == (champion, canary)
    assert shop.rollouts("/rollback", reason="test")["action"] == "abort"
    assert set(met()) == {champion}
    assert shop.text(f"home@{canary}", max_tokens=1).system_fingerprint == canary
    assert shop.rollouts("/rollback", reason="test")["version"] == before
    assert set(met()) == {before}


def test_prometheus_reads_a_shadows_figures_until_it_goes(shop: Shop) -> None:
    champion = shop.now()
    shadow = next(version for version in shop.versions if version.id != champion)
    labels = {"name": "home", "version": shadow.id}

    def told(key: str, found: float | None) -> bool:
        return found == shop.rollouts()["shadow_seen"][key]

    shop.promote(shadow, shadow=True)
    begun = time.monotonic()
    while shop.rollouts()["shadow_seen"] is None:
        assert shop.now() == champion
        assert time.monotonic() - begun < 30
    for key in ("requests", "failed", "equal", "agreement"):
        there = value(f"ray_moetune_shadow_{key}", partial(told, key), **labels)
        assert told(key, there), key
    assert value("ray_moetune_shadow_p95_seconds", **labels, side="champion")
    shop.rollouts("/abort", reason="test")
    assert value("ray_moetune_shadow_requests", lambda found: found is None, **labels) is None


def test_a_rollback_from_the_command_line_is_soon_seen(
    shop: Shop, store: tuple[str, Path, list[Version]]
) -> None:
    before, _ = shop.change()
    command = [Path(sys.executable).parent / "moetune", "rollback", "home"]
    begun = time.monotonic()
    ran = subprocess.Popen([*command, "--storage", store[1]], stdout=subprocess.PIPE, text=True)
    while shop.now() != before:
        assert time.monotonic() - begun < 30
    moved = time.monotonic() - begun
    said, _ = ran.communicate(timeout=30)
    print(f"traffic has moved {moved:.2f} s after the command began, whole")
    assert said.startswith(f"home is back at home@{before}")


def test_a_new_deployment_loses_no_request(
    shop: Shop, store: tuple[str, Path, list[Version]]
) -> None:
    whole = shop.text().choices[0].text
    done = threading.Event()

    def loop(number: int) -> int:
        for count in itertools.count():
            if done.is_set():
                return count
            if number:
                assert shop.text().choices[0].text == whole
            else:
                pieces = shop.text(stream=True)
                assert "".join(piece.choices[0].text for piece in pieces) == whole
        raise AssertionError

    with ThreadPoolExecutor(2) as pool:
        loops = [pool.submit(loop, number) for number in range(2)]
        try:
            deploy(SPEC, served_base(store[0], store[1], "home"))
        finally:
            done.set()
        assert all(one.result() > 0 for one in loops)


def kill_engine() -> None:
    """The only replica."""
    import ray

    [name] = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if "moetune#Engine" in actor["name"]
    ]
    ray.kill(ray.get_actor(name, namespace="serve"))


def test_the_fault_of_one_prompt_among_many_comes_before_a_stream(shop: Shop) -> None:
    several = ["hello", [72, 105], *["hello"] * 10]
    pieces = list(shop.text(prompt=several, max_tokens=2, stream=True))
    assert {piece.choices[0].index for piece in pieces} == {*range(12)}
    with pytest.raises(openai.BadRequestError, match=r"prompt\.12: the prompt is empty"):
        shop.text(prompt=[*several, ""], max_tokens=2, stream=True)


def test_an_answer_outlives_its_replica(shop: Shop) -> None:
    fields: dict[str, Any] = {"max_tokens": 300, "temperature": 1, "seed": 3, "prompt": "tell me"}
    whole = shop.text(**fields)
    stream = iter(shop.text(**fields, stream=True))
    text = "".join(next(stream).choices[0].text for _ in range(5))
    kill_engine()
    text += "".join(piece.choices[0].text for piece in stream)
    assert text == whole.choices[0].text


def test_a_replica_that_answers_otherwise_than_before_gets_no_request(
    shop: Shop, tiny_model_dir: Path
) -> None:
    """Its base model is damaged where no digest looks, and its version is what it was."""
    from ray import serve

    whole, weights = shop.text().choices[0].text, tiny_model_dir / "model.safetensors"
    good = tiny_model_dir / "good"
    weights.rename(good)  # what others have mapped stays as it is
    try:
        damaged = load_file(good)
        damaged["model.layers.1.mlp.down_proj.weight"].view(-1)[1::8] += 5
        save_file(damaged, weights, {"format": "pt"})
        kill_engine()
        begun = time.monotonic()
        while "but first with" not in (
            serve.status().applications["moetune"].deployments["Engine"].message
        ):
            assert time.monotonic() - begun < 90
            time.sleep(0.2)
        assert not httpx.get(f"{shop.endpoint.url}/ready", timeout=30).is_success
    finally:
        good.replace(weights)
    assert shop.text().choices[0].text == whole, "it has started once more"


def test_the_small_client_asks_and_explains(shop: Shop) -> None:
    url = shop.endpoint.url
    client, fields = Client(url, KEY), {"temperature": 0, "max_tokens": 12}
    [whole] = client.ask("home", "hello", **fields)
    again = Client(f"{url}/v1/", KEY).ask("home", "hello", stream=True, **fields)
    assert "".join(again) == whole
    for asked, message in (
        (Client(url, "wrong key").ask("home", "hello"), "key is required"),
        (client.ask("nobody", "hello"), "nobody"),
        (client.ask("home", "hello", stream=True, max_tokens=-1), "max_tokens"),
        (Client("http://127.0.0.1:1").ask("home", "hello"), "no answer"),
        (Client("nonsense").ask("home", "hello"), "no answer"),
        (Client(f"{url}/health", KEY).ask("home", "hello"), "Not Found"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            list(asked)
        assert "\n" not in str(caught.value)


def refused(match: str, *base: Any, **fields: Any) -> None:
    """An endpoint of this base (by `served_base`'s arguments), the shop's but for `fields`, is
    refused in one line for people."""
    with pytest.raises((InputError, ClusterError), match=match) as caught:
        deploy(SPEC.model_copy(update=fields), served_base(*base))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_served_is_refused_before_anything_starts(
    ray_cluster: Session,
    store: tuple[str, Path, list[Version]],
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, folder, _ = store
    port = int(shop.endpoint.url.rpartition(":")[2])
    refused("name a model", url, folder, None)
    refused("nobody", url, folder, "nobody")
    refused("cannot be read", url, folder, "home", ModelSpec(path=str(tmp_path)))
    refused("wants 4 replicas of 100 CPUs", url, folder, "home", replicas=4, cpus_per_replica=100)
    refused("and 1 GPU, and has no room", url, folder, "home", gpus_per_replica=1)
    refused("listens on", url, folder, "home", port=port + 1)
    monkeypatch.setenv("MOETUNE_API_KEY", "short")
    refused("at least 16", url, folder, "home")
    monkeypatch.delenv("MOETUNE_API_KEY")
    refused("set a key", url, folder, "home", host="0.0.0.0")
    refused("set a key", url, folder, "home", host="my.host.example")
    monkeypatch.setenv("MOETUNE_API_KEY_FILE", str(tmp_path / "missing"))
    refused("MOETUNE_API_KEY_FILE", url, folder, "home")
    assert shop.text().choices[0].text


def test_a_port_in_use_is_refused_without_starting_serve() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be listened on"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    with pytest.raises(InputError, match="cannot be listened on"):
        free_port("192.0.2.1", 0)


def test_a_key_that_was_made_does_not_stop_an_endpoint_on_loopback(
    shop: Shop, store: tuple[str, Path, list[Version]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who starts it holds no key: neither the one that was made, nor one of their own."""
    url, folder, _ = store
    kept, secret, now = KeyStore(url), "mt-a-key-that-was-made", datetime.now(UTC)
    kept.add(Key(key_hash(secret), Caller("k-1", frozenset({"infer"})), "", now))
    made = shop.client.copy(api_key=secret)

    def status(client: openai.OpenAI) -> int:
        try:
            client.completions.create(model="home", prompt="hello", max_tokens=1)
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    def until(wanted: tuple[int, int]) -> None:
        begun = time.monotonic()
        while (status(shop.client), status(made)) != wanted:
            assert time.monotonic() - begun < 30
            time.sleep(0.1)

    monkeypatch.delenv("MOETUNE_API_KEY")
    assert deploy(SPEC, served_base(url, folder, "home")) == replace(shop.endpoint, needs_key=True)
    until((401, 200))
    kept.revoke("k-1", now)
    until((401, 401))
    assert deploy(SPEC, served_base(url, folder, "home")).needs_key
    kept.delete("k-1", now)
    MadeKeys(kept.all, folder).forget()
    until((200, 200))
    kept.close()


def test_the_operators_key_is_told_to_the_gateway_alone(
    ray_cluster: Session, store: tuple[str, Path, list[Version]], tiny_model_dir: Path
) -> None:
    url, folder, _ = store
    spec = EndpointSpec(
        serve=SPEC,
        model=ModelSpec(path=str(tiny_model_dir)),
        store_url=url,
        storage=str(folder),
        accepted_key=key_hash(KEY),
    )
    told, engine = build(spec)._bound_deployment.init_args
    assert told == spec
    [of_engine] = engine._bound_deployment.init_args
    assert of_engine == spec.model_copy(update={"accepted_key": None})


def test_an_endpoint_that_goes_ends_what_runs_first(shop: Shop) -> None:
    """Nearly last, since it takes the endpoint down."""
    stream = iter(shop.text("tiny-llama", max_tokens=440, stream=True))
    text = next(stream).choices[0].text
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, stream)
        undeploy()
        pieces = rest.result(60)
    assert pieces[-1].choices[0].finish_reason is not None
    assert len(text) + sum(len(piece.choices[0].text) for piece in pieces) > 100
    with pytest.raises(httpx.NetworkError):  # a dying proxy may take one more, and reset it
        httpx.get(f"{shop.endpoint.url}/health")


def test_a_name_of_another_base_is_refused_and_leaves_nothing_running(
    shop: Shop, store: tuple[str, Path, list[Version]], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    url, folder, _ = store
    other = tmp_path / "other-llama"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.get_input_embeddings().weight.data.mul_(1.5)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(other)
    undeploy()  # it has gone already unless this test runs alone
    refused("is another base model than", url, folder, "home", ModelSpec(path=str(other)))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{shop.endpoint.url}/health")


def test_a_cluster_that_serves_something_else_is_left_alone(
    ray_cluster: Session,
    store: tuple[str, Path, list[Version]],
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Last too: Serve is down when it begins, and when it ends."""
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        def __call__(self) -> str:
            return "other"

    monkeypatch.delenv("MOETUNE_API_KEY", raising=False)
    serve.start(http_options={"host": SPEC.host, "port": free_port(SPEC.host, 0)})
    try:
        serve.run(Other.bind(), name="other", route_prefix="/")
        url, folder, _ = store
        refused(
            "is being used by application", url, folder, None, ModelSpec(path=str(tiny_model_dir))
        )
        assert list(serve.status().applications) == ["other"]
    finally:
        serve.shutdown()


def test_serve_that_does_not_start_says_why_and_is_gone(
    ray_cluster: Session,
    store: tuple[str, Path, list[Version]],
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a node without moetune. The last one, for the same reason."""
    monkeypatch.delenv("MOETUNE_API_KEY", raising=False)
    monkeypatch.setitem(
        SERVE_MIDDLEWARE, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "missing:in_front"
    )
    url, folder, _ = store
    refused("No module named 'missing'", url, folder, None, ModelSpec(path=str(tiny_model_dir)))
    assert running_address() is None
