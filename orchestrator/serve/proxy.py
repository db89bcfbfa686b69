"""Where Ray Serve listens: one HTTP address for a cluster, fixed when Serve starts."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cluster.address import is_loopback
from cluster.environment import serve_middleware
from orchestrator.config.serve import ServeSpec
from workers.config.base import InputError


class Address(NamedTuple):
    """Where Serve listens."""

    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """What clients on this machine take."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{self.port}"


def start(spec: ServeSpec) -> str:
    """Start Serve's proxy, or find it running at that address; returns its URL."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its progress is not for people
    tls = spec.tls.checked()
    running = running_address()
    if running is not None:
        port = spec.port or running.port
        if running != Address(spec.host, port, tls.cert is not None):
            raise InputError(
                f"serve.port: this cluster's Serve listens on {running.url} already; take that "
                "address, or stop it first"
            )
        return running.url
    port = free_port(spec.host, spec.port)
    location = ProxyLocation.HeadOnly if is_loopback(spec.host) else ProxyLocation.EveryNode
    options = HTTPOptions(host=spec.host, port=port, ssl_keyfile=tls.key, ssl_certfile=tls.cert)
    controller = {"runtime_env": {"env_vars": serve_middleware(spec.limits.max_body_bytes)}}
    with _told():
        serve.start(proxy_location=location, http_options=options, controller_options=controller)
    return Address(spec.host, port, tls.cert is not None).url


@contextmanager
def _told() -> Iterator[None]:
    """One line where Serve does not start, as on a node without moetune; nothing stays running."""
    from ray import serve
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, TimeoutError) as error:
        serve.shutdown()  # it would try for ever
        said = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"serve: Ray Serve does not start: {said}") from error


def running_address() -> Address | None:
    """Where the cluster's Serve listens; None where it does not run."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    options = client.http_config
    return Address(options.host, options.port, options.ssl_certfile is not None)


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
