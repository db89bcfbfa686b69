"""The gateway over one engine, with two keys, in a process of its own: what is attacked.

Says its port, then how long its event loop let others wait since it was last asked, and how much
memory it and its children hold.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import torch
from serving_gateway import listen
from serving_process import answer_all

from orchestrator.auth.keys import Caller, Key, KeyRing, key_hash
from orchestrator.gateway.app import create_app
from orchestrator.gateway.services import GatewayServices
from orchestrator.registry.registry import Registry
from orchestrator.replicas.endpoint import begun
from orchestrator.rollout.catalog import ModelCatalog
from tests.tiny import write_model
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Limits
from workers.engine.text_engine import TextEngine
from workers.models.base import load_base

GLANCE = 0.005
"""Seconds between two looks at the loop."""


class Stalls:
    """How long what comes to the event loop waits: at every `GLANCE` of the time, in seconds."""

    def __init__(self) -> None:
        self._waits: list[float] = []

    async def watch(self) -> None:
        """For as long as the application runs."""
        while True:
            due = time.perf_counter() + GLANCE
            await asyncio.sleep(GLANCE)
            late = time.perf_counter() - due
            # Everything that came while the loop stood still has waited, not one of them alone.
            self._waits += [late - n * GLANCE for n in range(int(late / GLANCE) + 1)]

    def taken(self) -> list[float]:
        """Those since the last time, sorted."""
        waits, self._waits = self._waits, []
        return sorted(waits)


def start(options: dict[str, Any]) -> Callable[..., Any]:
    """Serve a tiny base as `base` to those who have the keys in `options`."""
    torch.set_num_threads(1)
    folder = options["folder"]
    path = write_model(Path(folder) / "base", options["context"])
    base = load_base(ModelSpec(path=str(path), device="cpu", dtype="float32"))
    limits = Limits(cache_tokens=2 * options["context"], max_new_tokens=64)
    text = TextEngine(ContinuousEngine(base, limits), base.tokenizer)
    registry = Registry(f"sqlite:///{folder}/moetune.db", folder)
    keys, stalls = KeyRing(read=lambda: [_key(name) for name in options["keys"]]), Stalls()
    keys.refresh()
    services = GatewayServices(keys=keys, tasks=(stalls.watch,))
    begun()
    port = listen(create_app(text, ModelCatalog(registry, "base", text.load), services))

    def told() -> dict[str, Any]:
        waits = stalls.taken()
        p99 = waits[round(0.99 * (len(waits) - 1))] if waits else 0.0
        return {"port": port, "stall_p99": p99, "memory": _memory()}

    return told


def _key(name: str) -> Key:
    return Key(key_hash(name), Caller(name, frozenset({"infer"})), "", datetime.now(UTC))


def _memory() -> int:
    """Bytes that would be free without this process and its children."""
    process = psutil.Process()
    return sum(map(_alone, [process, *process.children(recursive=True)]))


def _alone(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.NoSuchProcess:  # a schema was just being tried out
        return 0


if __name__ == "__main__":
    answer_all(start)
