"""Where Ray Serve listens: one HTTP address for a cluster, fixed when Serve starts."""

import ipaddress
import logging
import socket
from typing import Any

from orchestrator.spec import ServeSpec
from workers.spec import InputError


def is_loopback(host: str) -> bool:
    """Whether nobody beyond this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def start(spec: ServeSpec) -> str:
    """Start Serve's proxy, or find it running at that address; returns its URL."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress is not for people
    running = running_address()
    if running is not None:
        if running[0] != spec.host or spec.port not in (0, running[1]):
            raise InputError(
                f"serve.port: this cluster's Serve listens on {running[0]}:{running[1]} already; "
                "take that address, or stop it first"
            )
        return _url(*running)
    port = free_port(spec.host, spec.port)
    location = ProxyLocation.HeadOnly if is_loopback(spec.host) else ProxyLocation.EveryNode
    serve.start(proxy_location=location, http_options=HTTPOptions(host=spec.host, port=port))
    return _url(spec.host, port)


def running_address() -> tuple[str, int] | None:
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def free_port(host: str, port: int) -> int:
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
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
