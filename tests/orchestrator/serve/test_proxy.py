"""Addresses of the endpoint."""

import pytest

from orchestrator.serve.proxy import Address


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("::", "http://[::1]:80"),
    ],
)
def test_the_url_is_one_that_clients_take(host: str, url: str) -> None:
    assert Address(host, 80, False).url == url
    assert Address(host, 80, True).url == url.replace("http", "https")
