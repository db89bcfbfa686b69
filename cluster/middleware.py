"""What stands in front of Ray Serve's proxies, wherever we have Serve started."""

MAX_BODY_VARIABLE = "MOETUNE_MAX_BODY_BYTES"
SERVE_MIDDLEWARE = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "orchestrator.gateway.header_middleware:in_front"
}
"""Environment of Serve's controller; its proxies inherit it, and read it when they start."""


def serve_middleware(max_body_bytes: int | None) -> dict[str, str]:
    """The same with the largest body that proxies let through; None leaves our default."""
    limit = {} if max_body_bytes is None else {MAX_BODY_VARIABLE: str(max_body_bytes)}
    return {**SERVE_MIDDLEWARE, **limit}
