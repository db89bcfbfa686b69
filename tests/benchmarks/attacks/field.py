"""What an attack does to the gateway and to another key's requests: before, during and after it."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import httpx
from serving_process import Process

CONTEXT = 8192
KEYS = {"victim": "a-key-of-one", "attacker": "a-key-of-another", "first": "a-third-key"}
FIRST = 0.3
"""Of the attack's length: a first one, by a key of its own."""
SHAPE = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}
SETTLE = 3
"""Seconds after the attack, before the memory is measured."""


@dataclass(frozen=True)
class Sizes:
    """How long, and by how many."""

    seconds: float = 10.0
    """Alone, and as long under attack."""
    clients: int = 8
    """That attack."""


def attacked(attack: str, sizes: Sizes) -> dict[str, float]:
    """`loop_stall_ms`: what comes to the gateway's event loop waits so long, p99 under attack;
    `memory_mb`: what the gateway's processes hold after it over before, when a shorter one has
    been there already, and `memory_first_mb` what that left: the allocator keeps what it once got;
    `victim_p95_ratio`: of another key's short requests, one after the other, under attack over
    alone."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway, url = _gateway(stack, folder)
        attackers = _started(stack, folder, "attackers", {"url": url, "attack": attack})
        victim = stack.enter_context(_client(url))
        for _ in range(20):  # warm
            _asked(victim, 0)
        fresh = gateway.ask()
        attackers.ask(clients=sizes.clients, seconds=FIRST * sizes.seconds, key=KEYS["first"])
        time.sleep(SETTLE)
        before = gateway.ask()
        alone = _latencies(victim, sizes.seconds)
        quiet = gateway.ask()
        attackers.begin(clients=sizes.clients, seconds=sizes.seconds, key=KEYS["attacker"])
        under = _latencies(victim, sizes.seconds)
        loud = gateway.ask()
        statuses = attackers.answer()
        time.sleep(SETTLE)
        after = gateway.ask()
        _asked(victim, 0)
    print(f"{attack}: answers by status {statuses}; victim {len(alone)} requests alone, "
          f"{len(under)} under attack", file=sys.stderr)  # fmt: skip
    return {
        "loop_stall_ms": 1000 * loud["stall_p99"],
        "loop_stall_alone_ms": 1000 * quiet["stall_p99"],
        "memory_mb": (after["memory"] - before["memory"]) / 2**20,
        "memory_first_mb": (before["memory"] - fresh["memory"]) / 2**20,
        "victim_p95_ratio": _p95(under) / _p95(alone),
        "victim_p95_ms": 1000 * _p95(under),
        "attacks": sum(statuses.values()),
        "attacks_failed": sum(n for status, n in statuses.items() if int(status) >= 500),
    }


def main(doc: str | None, measure: Callable[[Sizes], dict[str, float]]) -> None:
    """Of a script for one attack."""
    given = vars(harness.parser(doc, Sizes()).parse_args())
    path = given.pop("json")
    harness.finish(measure(Sizes(**given)), path)


def _gateway(stack: ExitStack, folder: Path) -> tuple[Process, str]:
    options = {"folder": str(folder), "context": CONTEXT, "keys": list(KEYS.values())}
    process = _started(stack, folder, "gateway", options)
    return process, f"http://127.0.0.1:{process.facts['port']}"


def _started(stack: ExitStack, folder: Path, name: str, options: dict[str, Any]) -> Process:
    python = Path(sys.executable)
    process = Process(python, f"attacks/{name}.py", options, folder / f"{name}.log")
    stack.callback(process.close)
    return process


def _client(url: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {KEYS['victim']}"}
    while not httpx.get(f"{url}/ready").is_success:
        time.sleep(0.05)
    return httpx.Client(base_url=url, headers=headers, timeout=300)


def _latencies(victim: httpx.Client, seconds: float) -> list[float]:
    def taken() -> Iterator[float]:
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            begun = time.perf_counter()
            _asked(victim, number)
            yield time.perf_counter() - begun
            number += 1

    return list(taken())


def _asked(victim: httpx.Client, number: int) -> None:
    """Every other request with a schema."""
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": f"hello {number}"}],
        "max_tokens": 8,
        "temperature": 0,
        **({"response_format": SHAPE} if number % 2 == 0 else {}),
    }
    answer = victim.post("/v1/chat/completions", json=body)
    if not answer.is_success:
        raise SystemExit(f"a request of the victim failed: {answer.text}")


def _p95(latencies: list[float]) -> float:
    return sorted(latencies)[round(0.95 * (len(latencies) - 1))]
