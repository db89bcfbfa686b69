"""Put an endpoint on a cluster with Ray Serve, and take it off again."""

import ipaddress
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.api import key_hash
from orchestrator.registry import Registry
from orchestrator.replica import EndpointSpec, Ingress, Replica
from orchestrator.spec import ServeSpec
from workers.spec import InputError, ModelSpec, validated

if TYPE_CHECKING:
    from ray.serve import Application

APP = "moetune"
KEY_VARIABLE = "MOETUNE_API_KEY"
KEY_FILE_VARIABLE = "MOETUNE_API_KEY_FILE"
SHORTEST_KEY = 16
READY_SECONDS = 120
UNBOUNDED = 100_000
"""Requests that Serve passes on at the same time: the engine's own queue is the limit."""


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint."""

    url: str
    """Where it listens; OpenAI's clients take this plus `/v1`."""
    base: str
    """What `model` calls the bare base."""
    needs_key: bool

    @property
    def openai_url(self) -> str:
        """`base_url` of OpenAI's clients."""
        return f"{self.url}/v1"


def deploy(
    serve: ServeSpec,
    model: ModelSpec | None,
    store_url: str,
    storage: str | Path,
    name: str | None,
) -> Endpoint:
    """Start the endpoint on the cluster that this process is connected to, and wait for it.

    It serves the base model and every name in the registry whose champion belongs to that base.
    `name` must have a champion; where `model` is None its base model is taken. An endpoint that is
    there already is replaced. The key is read from MOETUNE_API_KEY or the file that
    MOETUNE_API_KEY_FILE names. Raises InputError before anything starts where something is wrong.
    """
    if model is None and name is None:
        raise InputError("serve: name a model of the registry, or a base model")
    registry = Registry(store_url, storage)
    try:
        base = _champion_base(registry, name) if name is not None else None
    finally:
        registry.close()
    spec = EndpointSpec(
        serve=serve,
        model=model or base or ModelSpec(path=""),
        store_url=store_url,
        storage=str(Path(storage).resolve()),
        accepted_key=_accepted_key(serve.host),
    )
    _check_model(spec.model)
    _check_room(serve)
    url = _start_serve(serve)
    _run(spec)
    _wait_until_ready(url)
    return Endpoint(url, spec.base_id, spec.accepted_key is not None)


def undeploy() -> None:
    """Take the endpoint off the cluster; Serve itself stops where it has nothing else to serve."""
    from ray import serve

    serve.delete(APP)
    if not serve.status().applications:
        serve.shutdown()


def build(spec: EndpointSpec) -> "Application":
    """The Serve application: `serve.run(build(spec))`, or `orchestrator.serving:build` in a
    Serve configuration with the specification as its arguments."""
    from ray import serve

    engine = serve.deployment(
        name="Engine",
        num_replicas=spec.serve.replicas,
        max_ongoing_requests=UNBOUNDED,
        ray_actor_options={
            "num_cpus": spec.serve.cpus_per_replica,
            "num_gpus": spec.serve.gpus_per_replica,
        },
    )(Replica)
    gateway = serve.deployment(
        name="Gateway", max_ongoing_requests=UNBOUNDED, ray_actor_options={"num_cpus": 0}
    )(serve.ingress()(Ingress))
    return gateway.bind(spec, engine.bind(spec))


def read_key() -> str | None:
    """The key from MOETUNE_API_KEY or MOETUNE_API_KEY_FILE; None where neither is set."""
    path = os.environ.get(KEY_FILE_VARIABLE)
    try:
        key = os.environ.get(KEY_VARIABLE) or (path and Path(path).read_text())
    except OSError as error:
        raise InputError(f"{KEY_FILE_VARIABLE}: {path}: {error.strerror}") from None
    return key.strip() if key else None


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _accepted_key(host: str) -> str | None:
    key = read_key()
    if key is None:
        if not is_loopback(host):
            raise InputError(
                f"serve.host is {host}, beyond loopback: set a key in {KEY_VARIABLE} or name its "
                f"file in {KEY_FILE_VARIABLE}"
            )
        return None
    if len(key) < SHORTEST_KEY:
        raise InputError(f"{KEY_VARIABLE}: the key must have at least {SHORTEST_KEY} characters")
    return key_hash(key)


def _champion_base(registry: Registry, name: str) -> ModelSpec:
    """The base model that a name's champion was trained on."""
    version = registry.resolve(name)
    manifest = registry.manifest(version)
    trained = (manifest.spec or {}).get("model", {"path": manifest.base.path})
    # Where the training ran says nothing about the machines that serve.
    values = {**trained, "device": "auto", "activation_checkpointing": False}
    return validated(ModelSpec, values, f"{name}@{version.id}: its base model")


def _check_model(model: ModelSpec) -> None:
    from workers.model import check_base

    check_base(model)


def _check_room(serve: ServeSpec) -> None:
    """Refuse what the cluster can never run; Serve would wait for it without an end."""
    import ray

    there = ray.cluster_resources()
    for resource, each in (("CPU", serve.cpus_per_replica), ("GPU", serve.gpus_per_replica)):
        needed, has = each * serve.replicas, there.get(resource, 0)
        if needed > has:
            raise InputError(
                f"serve: {serve.replicas} replicas need {needed:g} {resource}, but the cluster has "
                f"{has:g}"
            )


def _start_serve(spec: ServeSpec) -> str:
    """Start Serve's proxy, or find it running at that address; returns its URL."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress is not for people
    running = _running_address()
    if running is not None:
        if running[0] != spec.host or spec.port not in (0, running[1]):
            raise InputError(
                f"serve.port: this cluster's Serve listens on {running[0]}:{running[1]} already; "
                "take that address, or stop it first"
            )
        return _url(*running)
    port = _free_port(spec.host, spec.port)
    location = ProxyLocation.HeadOnly if is_loopback(spec.host) else ProxyLocation.EveryNode
    serve.start(proxy_location=location, http_options=HTTPOptions(host=spec.host, port=port))
    return _url(spec.host, port)


def _running_address() -> tuple[str, int] | None:
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def _free_port(host: str, port: int) -> int:
    """`port` if it is free, or any free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise InputError(
                f"serve.port: {host}:{port} cannot be listened on: {error.strerror}"
            ) from None
        return int(listener.getsockname()[1])


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    return f"http://{shown}:{port}"


def _run(spec: EndpointSpec) -> None:
    from ray import serve

    try:
        serve.run(build(spec), name=APP, route_prefix="/")
    except RuntimeError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"serve: the endpoint does not start: {said[-1]}") from error


def _wait_until_ready(url: str) -> None:
    import httpx

    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            if httpx.get(f"{url}/ready", timeout=10).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise InputError(f"serve: {url} does not get ready; see Serve's logs")
        time.sleep(0.1)
