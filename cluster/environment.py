"""Environment variables that Ray reads: the one place where we set them."""

import importlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

DRIVER = {
    # Ray Train polls its workers and the report queue this often: 2 s by default, paid per report.
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # One actor less for each run; we resume from checkpoints after a preemption.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Relative paths in a job mean the same in a trial as in the driver.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Trials write their own progress; no TensorBoard, CSV and JSON copies.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Why a trial failed is told in one line, and kept with the trial.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""For every driver of ours. Ray Train hands them on to its controller and workers."""

LOOPBACK = {
    # Ray replaces 127.0.0.1 by the machine's outer address unless told that it is no cluster host;
    # with it every server of Ray binds to 127.0.0.1, its metrics ports included.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A second cluster on the machine must not fight for the fixed default.
    "DASHBOARD_METRIC_PORT": "0",
    # Metrics are fresh within three seconds instead of ten.
    "RAY_metrics_report_interval_ms": "3000",
}
"""For a cluster of ours on this machine, and for drivers of any that listens on loopback."""

SECRETS = ("RAY_AUTH_TOKEN", "MOETUNE_API_KEY")
"""What no process of a cluster inherits: tokens are in files, and of the operator's key the gateway
alone is told, and no more than its hash."""
NO_PROXY = ("no_proxy", "NO_PROXY")
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def loopback() -> dict[str, str]:
    """Settings of a local cluster; the workers of a run meet on the loopback interface too."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if sys.platform == "linux" else ()
    return {**LOOPBACK, **dict.fromkeys(names, "lo"), **direct()}


def direct() -> dict[str, str]:
    """Proxies are for other machines: who talks to this one goes to it directly."""
    given = [one.strip() for name in NO_PROXY for one in os.environ.get(name, "").split(",")]
    hosts = dict.fromkeys([*filter(None, given), "localhost", "127.0.0.1", "::1"])
    return dict.fromkeys(NO_PROXY, ",".join(hosts))


def settings(token_file: Path | None, *, local: bool) -> dict[str, str]:
    """For a driver of the cluster whose token is in `token_file`; None is a cluster not ours. A
    `local` one is reached by a loopback address."""
    return DRIVER | (loopback() if local else {}) | authentication(token_file)


def authentication(token_file: Path | None) -> dict[str, str]:
    """Token authentication with our own token, or else with the one that the user has set up.

    The token itself stays in its file. Empty if there is none: the mode is then as the user set it.
    """
    if token_file is not None:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    return {"RAY_AUTH_MODE": "token"} if token() else {}


def token(token_file: Path | None = None) -> str | None:
    """The token in `token_file`, or else where Ray looks for it; None if the mode is disabled."""
    if token_file is None and _has_mode() and (value := os.environ.get("RAY_AUTH_TOKEN")):
        return value.strip()
    file = token_file or _users_file()
    return file.read_text().strip() if file else None


def showing_token(token_file: Path | None = None) -> str | None:
    """The shell's command that shows `token()`, which Ray's pages ask for; None without one."""
    if token_file is None and _has_mode() and os.environ.get("RAY_AUTH_TOKEN"):
        return "echo $RAY_AUTH_TOKEN"
    file = token_file or _users_file()
    return f"cat {shlex.quote(str(file))}" if file else None


def _has_mode() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _users_file() -> Path | None:
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path if _has_mode() and path.is_file() else None


@contextmanager
def applied(settings: Mapping[str, str]) -> Iterator[None]:
    """Set the variables, for Ray also where it is loaded already, and put them back at the end.

    A variable that the user has set wins, except where a cluster's own token is concerned; to what
    proxies are not for, ours is added.
    """
    owned = "RAY_AUTH_TOKEN_PATH" in settings
    changes = {
        name: value
        for name, value in settings.items()
        if name not in os.environ or name in NO_PROXY or (owned and name.startswith("RAY_AUTH"))
    }
    before = {name: os.environ.get(name) for name in (*changes, *_TOKEN_VARIABLES)}
    os.environ.update(changes)
    if owned:
        os.environ.pop("RAY_AUTH_TOKEN", None)  # it would win over the path
    _refresh()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _refresh()


def _refresh() -> None:
    """Make Ray read the environment again, which it does once, when it is imported.

    Mode before token, or a thread of the core that still drains aborts the process.
    """
    if "ray" in sys.modules:
        core = importlib.import_module("ray._raylet")
        importlib.reload(importlib.import_module("ray._private.ray_constants"))
        core.Config.initialize("")
        core.AuthenticationTokenLoader.instance().reset_cache()


MAX_BODY_VARIABLE = "MOETUNE_MAX_BODY_BYTES"
SERVE_MIDDLEWARE = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "orchestrator.gateway.header_middleware:in_front"
}
"""Environment of Serve's controller; its proxies inherit it, and read it when they start."""


def serve_middleware(max_body_bytes: int | None) -> dict[str, str]:
    """The same with the largest body that proxies let through; None leaves our default."""
    limit = {} if max_body_bytes is None else {MAX_BODY_VARIABLE: str(max_body_bytes)}
    return {**SERVE_MIDDLEWARE, **limit}
