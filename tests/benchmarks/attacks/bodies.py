"""Bodies and heads without an end, from clients without a key, through Ray Serve's own proxy.

    python tests/benchmarks/attacks/bodies.py [--seconds 10] [--clients 4] [--json PATH|-]

An endpoint on a cluster of its own serves a tiny model. Each client sends, over and over, a body of
800 MiB with its length and one in chunks, both without a key, and a header that does not end; and
leaves half a head behind on further connections.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import harness
import httpx
import psutil
from soak_processes import actors

from cluster.session import session
from orchestrator.config.serve import ServeSpec
from orchestrator.serve.deploy import deploy, undeploy
from orchestrator.serve.served_base import served_base
from tests.tiny import write_model
from workers.config.model import ModelSpec

KEY = "a-key-that-no-attacker-has"
BYTES = 800 * 2**20
PIECE = b"x" * 2**16
HEAD = "POST /moetune/v1/rollouts/home/rollback HTTP/1.1\r\nhost: localhost\r\n"
ATTACKS = (
    (f"{HEAD}content-length: {BYTES}\r\n\r\n", PIECE),
    (f"{HEAD}transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + PIECE + b"\r\n"),
    (f"{HEAD}x: ", PIECE),
)
HALF_OPEN = 50
"""Connections with half a head, of each client."""
FRONT = ("Gateway", "ProxyActor")


@dataclass(frozen=True)
class Sizes:
    """How long, and by how many."""

    seconds: float = 10.0
    clients: int = 4


@contextmanager
def endpoint() -> Iterator[str]:
    """Its URL."""
    with tempfile.TemporaryDirectory() as folder:
        base, environment = write_model(Path(folder) / "base"), dict(os.environ)
        os.environ["MOETUNE_API_KEY"] = KEY
        spec = ServeSpec(port=0, cpus_per_replica=0.5)
        try:
            with session(num_cpus=2):
                model = ModelSpec(path=str(base), device="cpu")
                place = f"sqlite:///{folder}/moetune.db", folder
                yield deploy(spec, served_base(*place, None, model)).url
                undeploy()
        finally:
            os.environ.clear()
            os.environ.update(environment)


def attack(port: int, seconds: float, clients: int) -> None:
    """Of a process of its own."""
    threads = [threading.Thread(target=_client, args=(port, seconds)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _client(port: int, seconds: float) -> None:
    end, half = time.monotonic() + seconds, []
    for _ in range(HALF_OPEN):
        half.append(create_connection(("127.0.0.1", port)))
        half[-1].sendall(HEAD.encode())
    while time.monotonic() < end:
        for begun, endless in ATTACKS:
            with suppress(OSError), closing(create_connection(("127.0.0.1", port), 5)) as wire:
                wire.sendall(begun.encode())
                for _ in range(BYTES // len(PIECE)):
                    wire.sendall(endless)
                    if time.monotonic() > end:
                        break
    for wire in half:
        wire.close()


def waits(web: httpx.Client, until: float) -> list[float]:
    """Seconds that the shortest of requests take, one after the other."""
    taken = []
    while time.monotonic() < until:
        begun = time.perf_counter()
        web.get("/health").raise_for_status()
        taken.append(time.perf_counter() - begun)
        time.sleep(0.005)
    return taken


def resident(fronts: Iterable[psutil.Process]) -> float:
    """MiB that they hold."""
    return sum(process.memory_info().rss for process in fronts) / 2**20


def measure(sizes: Sizes = Sizes()) -> dict[str, float]:
    """`loop_stall_ms`: what another client's shortest request waits longer than alone, p99;
    `memory_mb`: what gateway and proxy hold after the attack over before, and `memory_peak_mb` the
    most meanwhile."""
    with endpoint() as url, httpx.Client(base_url=url, timeout=120) as web:
        waits(web, time.monotonic() + 2)  # warm
        fronts = [psutil.Process(pid) for pid, kind in actors().items() if kind in FRONT]
        before = resident(fronts)
        alone = waits(web, time.monotonic() + sizes.seconds)
        port = int(url.rpartition(":")[2])
        begun = time.monotonic()
        process = multiprocessing.get_context("spawn").Process(
            target=attack, args=(port, sizes.seconds, sizes.clients)
        )
        process.start()
        under, peak = [], before
        while process.is_alive() and time.monotonic() < begun + 10 * sizes.seconds:
            under += waits(web, time.monotonic() + 1)
            peak = max(peak, resident(fronts))
        process.join()
        time.sleep(3)
        after = resident(fronts)
    usual = statistics.median(alone)
    return {
        "loop_stall_ms": 1000 * (_p99(under) - usual),
        "loop_stall_alone_ms": 1000 * (_p99(alone) - usual),
        "memory_mb": after - before,
        "memory_peak_mb": peak - before,
    }


def _p99(taken: list[float]) -> float:
    return sorted(taken)[round(0.99 * (len(taken) - 1))]


def main() -> None:
    """Run it."""
    given = vars(harness.parser(__doc__, Sizes()).parse_args())
    path = given.pop("json")
    harness.finish(measure(Sizes(**given)), path)


if __name__ == "__main__":
    main()
