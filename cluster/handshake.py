"""Whether a Ray cluster that lets us in listens at an address: asked once, answered soon."""

from collections.abc import Mapping
from typing import Any

from cluster import environment
from cluster.address import ClusterAddress, on_loopback, resolve
from cluster.errors import ClusterError

ANSWER_SECONDS = 5.0
"""Longer than a busy cluster takes, far shorter than Ray's own patience."""
_NO_ENTRY = (
    "the cluster wants its token; put it into ~/.ray/auth_token (mode 600), or name its file by "
    "RAY_AUTH_TOKEN_PATH"
)


def check_cluster(address: str) -> None:
    """One call to the cluster at host:port: it is Ray's, accepts our token, and has our version.

    Ray itself would wait for most of a minute, or retry a wrong token, before it says so.
    """
    import ray

    reply = _asked(address, "CheckAlive")
    if reply.ray_version != ray.__version__:
        raise ClusterError(
            f"{address}: runs Ray {reply.ray_version}, but here is {ray.__version__}; "
            "the versions must be the same"
        )


def own_address(address: str) -> str:
    """The host:port by which the cluster's own nodes know the head that answers at `address`.

    Ray joins through a node on this very machine, and takes 127.0.0.1 for the machine's outer
    address: where that is wrong it tries for a quarter of an hour. Raises ClusterError instead.
    """
    from ray._private.services import find_node_ids

    alive = [node for node in _asked(address, "GetAllNodeInfo").node_info_list if node.state == 0]
    here = [node for node in alive if node.node_id.hex() in find_node_ids()]
    if not here:
        raise ClusterError(
            f"{address}: none of the cluster's {len(alive)} nodes runs on this machine; run the "
            "command on one of them, or send the job there by `moetune submit`"
        )
    if not on_loopback(address):
        return address
    head = next((node for node in here if node.is_head_node), None)
    if head is None:
        others = ", ".join(node.node_manager_address for node in alive if node.is_head_node)
        raise ClusterError(
            f"{address}: leads to a head on another machine; give its own address, {others}"
        )
    host, port = head.node_manager_address, address.rpartition(":")[2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _asked(address: str, what: str) -> Any:
    """The answer of the control service at host:port to a question without arguments."""
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    try:
        with init_grpc_channel(address) as channel:
            service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            question = getattr(gcs_service_pb2, f"{what}Request")()
            return getattr(service, what)(question, timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        raise ClusterError(f"{address}: {_refusal(error.code())}") from None


def check_dashboard(url: str, headers: Mapping[str, str]) -> None:
    """The dashboard at `url` answers, is Ray's, and accepts the token in `headers`."""
    import httpx

    try:
        reply = httpx.get(f"{url}/api/version", headers=dict(headers), timeout=ANSWER_SECONDS)
    except httpx.HTTPError as error:
        raise ClusterError(f"{url}: no dashboard answers: {error}") from None
    if reply.status_code in (401, 403):
        raise ClusterError(f"{url}: {_NO_ENTRY}")
    if reply.status_code != 200 or "ray_version" not in reply.text:
        raise ClusterError(f"{url}: what answers there is no Ray dashboard")


def reach(address: str) -> str:
    """Go through the cluster's door without joining it; what was found, in words."""
    endpoint = resolve(address)
    if endpoint.address is None:
        url = endpoint.dashboard_url or ""
        check_dashboard(url, bearer(endpoint))
        return f"the dashboard at {url} lets us in"
    with environment.applied(environment.authentication(endpoint.token_file)):
        check_cluster(endpoint.address)
    kind = "a local cluster of ours" if endpoint.token_file else "the cluster"
    return f"{kind} at {endpoint.address} lets us in"


def bearer(endpoint: ClusterAddress) -> dict[str, str]:
    """The HTTP header that carries the token, where there is one."""
    token = environment.token(endpoint.token_file)
    return {"Authorization": f"Bearer {token}"} if token else {}


def find_dashboard(endpoint: ClusterAddress) -> str:
    """Ask the cluster's control service where its dashboard is."""
    address = endpoint.address or ""
    settings = environment.settings(endpoint.token_file, local=on_loopback(address))
    with environment.applied(settings):
        check_cluster(address)
        from ray.dashboard.utils import ray_address_to_api_server_url

        try:
            return str(ray_address_to_api_server_url(address))
        except ValueError:
            raise ClusterError(f"{address}: the cluster has no dashboard") from None


def _refusal(code: Any) -> str:
    if code.name in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return _NO_ENTRY
    return "what listens there is no Ray cluster (GCS), or does not answer"
