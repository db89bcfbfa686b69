"""What stands in front of Ray Serve's proxies, wherever we have Serve started."""

SERVE_MIDDLEWARE = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "orchestrator.edge.text_headers:in_front"
}
"""Environment of Serve's controller; its proxies inherit it, and read it when they start."""
