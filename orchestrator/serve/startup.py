"""How an endpoint that was started comes up: whether it answers yet, and else why not."""

import time
from typing import TYPE_CHECKING

from orchestrator.config.tls import TlsSpec
from orchestrator.serve.proxy import running_address
from orchestrator.serve.tls import own
from workers.config.base import InputError

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

APP = "moetune"
"""The endpoint's application, as Serve calls it."""
READY_SECONDS = 120


def application() -> "ApplicationStatusOverview | None":
    """Ours on this cluster, if it is there."""
    from ray import serve

    return None if running_address() is None else serve.status().applications.get(APP)


def why_not(error: Exception) -> str:
    """Why it does not start: what its replicas say, or else the error that Serve has raised."""
    return last_words(_said_by_replicas()) or last_words(str(error))


def last_words(said: str) -> str:
    """The last line of it; of an InputError only what it says."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [""]
    return lines[-1].rpartition("InputError: ")[2]


def wait_until_ready(url: str, tls: TlsSpec) -> None:
    """Wait until the endpoint says at its address that it answers; that takes no key."""
    import httpx

    deadline = time.monotonic() + READY_SECONDS
    verify = own(tls.cert) if tls.cert else True
    with httpx.Client(base_url=url, timeout=READY_SECONDS, verify=verify) as client:
        while True:
            try:
                if client.get("/ready").is_success:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > deadline:
                raise InputError(f"serve: {url} does not get ready; see Serve's logs")
            time.sleep(0.1)


def check_served(name: str | None) -> bool:
    """Make sure that the gateway serves the name; whether it wants a key of those who ask. It is
    asked as its application, not over HTTP: whoever starts an endpoint need not hold a key of it.
    """
    from ray import serve

    told = serve.get_app_handle(APP).serving.remote(name).result(timeout_s=READY_SECONDS)
    if told.refused is not None:
        raise InputError(f"serve: {told.refused}")
    return bool(told.needs_key)


def _said_by_replicas() -> str:
    """What the deployments that failed tell of their replicas: a traceback, as a rule."""
    app = application()
    deployments = app.deployments.values() if app else ()
    return "\n".join(one.message for one in deployments if one.status == "DEPLOY_FAILED")
