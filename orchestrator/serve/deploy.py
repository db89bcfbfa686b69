"""Put an endpoint on a cluster with Ray Serve, and take it off again."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.errors import ClusterGone
from cluster.inventory import inventory
from cluster.placement import fits, wait_for_room
from cluster.session import starts_here
from orchestrator.auth.made_keys import check_keys
from orchestrator.auth.operator_key import accepted_key
from orchestrator.config.cluster import ClusterSpec
from orchestrator.config.serve import ServeSpec
from orchestrator.doctor.demand import endpoint_demand
from orchestrator.gateway.deployment import Ingress
from orchestrator.replicas.endpoint import EndpointSpec
from orchestrator.replicas.replica import Replica
from orchestrator.serve.proxy import free_port, running_address, start
from orchestrator.serve.served_base import ServedBase
from orchestrator.serve.startup import APP, application, check_served, wait_until_ready, why_not
from workers.config.base import InputError

if TYPE_CHECKING:
    from ray.serve import Application

DRAIN_SECONDS = 600
"""Longer than requests take; they have a limit of their own."""
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
    """Whether who asks needs a key: the operator's, or one that was made."""

    @property
    def openai_url(self) -> str:
        """`base_url` of OpenAI's clients."""
        return f"{self.url}/v1"


def check_endpoint(serve: ServeSpec, where: ClusterSpec) -> None:
    """What can be known to go wrong before there is a cluster: InputError for a host that wants a
    key, certificates, keys that are gone, and a port that is taken on this machine, where the
    cluster is to be started here."""
    accepted_key(serve.host)
    serve.tls.checked()
    check_keys(where.store_url(), where.storage)
    if starts_here(where.address):
        free_port(serve.host, serve.port)


def deploy(serve: ServeSpec, base: ServedBase) -> Endpoint:
    """Start the endpoint on the cluster that this process is connected to, and wait for it.

    It serves the base model and every name in the registry whose champion belongs to that base. An
    endpoint that is there already is replaced. The key is read from MOETUNE_API_KEY or the file
    that MOETUNE_API_KEY_FILE names. Raises InputError before anything starts where something is
    wrong, and ClusterError where there is no room for the replicas in time.
    """
    spec = EndpointSpec(
        serve=serve,
        model=base.model,
        store_url=base.store_url,
        storage=str(base.storage),
        accepted_key=accepted_key(serve.host),
    )
    check_keys(base.store_url, base.storage)
    _wait_for_room(serve)
    url = start(serve)
    try:
        _run(spec)
        wait_until_ready(url, serve.tls)
        needs_key = check_served(base.name)
    except BaseException:  # Ctrl-C too: the cluster may not be ours, and stay
        _remove()
        raise
    return Endpoint(url, spec.base_id, needs_key)


@contextmanager
def undeploying() -> Iterator[None]:
    """`undeploy` at the block's end, however it comes; but for a cluster that is gone, and
    everything on it."""
    try:
        yield
    except ClusterGone:
        raise
    except BaseException:
        undeploy()
        raise
    undeploy()


def undeploy() -> None:
    """Let the running requests end and take the endpoint off the cluster; Serve itself stops where
    it has nothing else to serve."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    if running_address() is None:
        return
    app = application()
    if app and app.status == "RUNNING":
        with suppress(RayServeException, RayError, TimeoutError):  # a gateway that is gone
            serve.get_app_handle(APP).drain.remote().result(timeout_s=DRAIN_SECONDS)
    _remove()


def _remove() -> None:
    from ray import serve

    if running_address() is None:
        return
    serve.delete(APP)
    if not serve.status().applications:
        serve.shutdown()


def build(spec: EndpointSpec) -> "Application":
    """The Serve application: `serve.run(build(spec))`, or `orchestrator.serve.deploy:build` in a
    Serve configuration with the specification as its arguments."""
    from ray import serve

    engine = serve.deployment(
        name="Engine",
        num_replicas=spec.serve.replicas,
        max_surge_percent=_surge(spec.serve),
        max_ongoing_requests=UNBOUNDED,
        graceful_shutdown_timeout_s=spec.serve.limits.request_seconds,
        ray_actor_options={
            "num_cpus": spec.serve.cpus_per_replica,
            "num_gpus": spec.serve.gpus_per_replica,
        },
    )(Replica)
    gateway = serve.deployment(
        name="Gateway",
        max_surge_percent=100,
        max_ongoing_requests=UNBOUNDED,
        graceful_shutdown_timeout_s=spec.serve.limits.request_seconds,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Ingress))
    return gateway.bind(spec, engine.bind(spec.model_copy(update={"accepted_key": None})))


def _surge(serve: ServeSpec) -> int:
    """Per cent of the replicas that a new deployment may have beside the old ones: all, where there
    is room for one at least, so that nothing stops before its successor answers. Without that the
    old ones stop first: new ones could wait for ever."""
    import ray

    left = ray.available_resources()
    room = serve.cpus_per_replica <= left.get("CPU", 0)
    return 100 if room and serve.gpus_per_replica <= left.get("GPU", 0) else 0


def _wait_for_room(serve: ServeSpec) -> None:
    """Serve itself would wait without an end and a word. An endpoint that is there already makes
    room for its successor."""
    demand = endpoint_demand(serve)
    if not (application() and fits(demand, inventory())):
        wait_for_room(demand, serve.wait_seconds)


def _run(spec: EndpointSpec) -> None:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        serve.run(build(spec), name=APP, route_prefix="/")
    except (RuntimeError, RayServeException) as error:
        raise InputError(f"serve: the endpoint does not start: {why_not(error)}") from error
