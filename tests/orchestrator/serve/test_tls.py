"""HTTPS with a certificate of our own making: its files, the client, and Ray Serve's proxy."""

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster.session import Session
from orchestrator.client import Client
from orchestrator.config.serve import ServeSpec
from orchestrator.config.tls import TlsSpec
from orchestrator.serve.proxy import free_port, start
from orchestrator.serve.tls import own
from workers.config.base import InputError, validated

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths: cert and key for localhost, another key, and the key with a password."""
    folder = tmp_path_factory.mktemp("tls")
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(keys[0].public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(keys[0], hashes.SHA256())
    )
    plain, locked = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"word")
    written = {
        "cert": built.public_bytes(PEM),
        "key": keys[0].private_bytes(PEM, PKCS8, plain),
        "other": keys[1].private_bytes(PEM, PKCS8, plain),
        "locked": keys[0].private_bytes(PEM, PKCS8, locked),
        "text": b"no certificate",
    }
    for file, content in written.items():
        (folder / file).write_bytes(content)
    return {file: str(folder / file) for file in written}


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("cert", "other", "mismatch"),
        ("cert", "locked", "serve.tls"),
        ("text", "key", "serve.tls"),
        ("cert", "missing", "No such file"),
    ],
)
def test_files_that_do_not_serve_are_refused_in_one_line(
    files: dict[str, str], cert: str, key: str, said: str
) -> None:
    spec = TlsSpec(cert=files[cert], key=files.get(key, key))
    with pytest.raises(InputError, match=said) as caught:
        spec.checked()
    assert "\n" not in str(caught.value)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(InputError, match="belong together"):
        validated(ServeSpec, {"tls": {"cert": "file"}}, "serve")


@pytest.fixture
def https(files: dict[str, str]) -> Iterator[str]:
    """URL of a server that knows no chat."""

    async def app(_scope: object, _receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"nothing here"})  # type: ignore[operator]

    port = free_port("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=port,
            lifespan="off",
            log_level="error",
            ssl_certfile=files["cert"],
            ssl_keyfile=files["key"],
        )
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"https://localhost:{port}"
    server.should_exit = True
    thread.join(20)


def test_the_client_trusts_whom_it_is_told_to(files: dict[str, str], https: str) -> None:
    with pytest.raises(InputError, match="nothing here"):
        list(Client(https, None, files["cert"]).ask("home", "hello"))
    with pytest.raises(InputError, match=r"no answer: .*certificate verify failed"):
        list(Client(https).ask("home", "hello"))
    for wrong in ("text", "missing"):
        with pytest.raises(InputError, match="--ca"):
            Client(https, None, files.get(wrong, wrong))
    elsewhere = https.replace("localhost", "127.0.0.1")
    with pytest.raises(InputError, match="no answer"):
        list(Client(elsewhere, None, files["cert"]).ask("home", "hello"))
    assert httpx.get(elsewhere, verify=own(files["cert"])).status_code == 404


def test_ray_serve_listens_with_the_certificate(
    ray_cluster: Session, files: dict[str, str]
) -> None:
    from ray import serve

    spec = ServeSpec(port=0, tls=TlsSpec(cert=files["cert"], key=files["key"]))
    try:
        url = start(spec)
        assert url.startswith("https://127.0.0.1:")
        answer = httpx.get(f"{url}/-/routes", verify=own(files["cert"]), timeout=30)
        assert answer.http_version == "HTTP/1.1"  # whatever it says: nothing is deployed
        for wrong in (url, url.replace("https", "http")):
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"{wrong}/-/routes", timeout=30)
        assert start(spec) == url
        with pytest.raises(InputError, match="listens on https"):
            start(ServeSpec(port=int(url.rpartition(":")[2])))
    finally:
        serve.shutdown()
