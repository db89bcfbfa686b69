"""One key has 90 requests open all the time: what another key's short requests take then.

    python tests/benchmarks/attacks/fairness.py [--clients 90] [--requests 60] [--json PATH|-]

A real engine on a tiny model, one thread, both keys in this process. `victim_p95_ratio` is the
other key's p95 under attack over alone. `victim_passes_ratio` is the same of the engine's forward
passes: what it waits for its turn, whatever a pass with more rows takes on this machine.
"""

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import harness
import torch

from tests.tiny import write_model
from workers.config.model import ModelSpec
from workers.engine.engine import ContinuousEngine
from workers.engine.request import Asker, Limits, RequestError, Sampling
from workers.models.base import load_base

PROMPT, ANSWER = 20, 8
"""Tokens of the victim's requests."""
LONG, AT_ONCE = 400, 0.02
"""The attacker's longest prompt; seconds after which a refused one is sent again."""


@dataclass(frozen=True)
class Sizes:
    """How many attack, and how often the victim asks."""

    clients: int = 90
    requests: int = 60
    cache_tokens: int = 8192


class Taken(NamedTuple):
    """What one request took."""

    seconds: float
    passes: int


@contextmanager
def _engine(cache_tokens: int) -> Iterator[ContinuousEngine]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "base")
        base = load_base(ModelSpec(path=str(path), device="cpu", dtype="float32"))
        engine = ContinuousEngine(base, Limits(cache_tokens=cache_tokens, max_new_tokens=64))
        try:
            yield engine
        finally:
            engine.close()


class Duel:
    """Both keys on one engine."""

    def __init__(self, engine: ContinuousEngine, sizes: Sizes) -> None:
        self._engine, self._sizes, self._draw = engine, sizes, random.Random(0)
        self.refused = 0

    async def fight(self) -> tuple[list[Taken], list[Taken]]:
        """What the victim's requests take alone, and under attack."""
        await self._victim()  # warm
        alone = await self._victim()
        crowd = [asyncio.create_task(self._attack()) for _ in range(self._sizes.clients)]
        while self._engine.statistics().waiting < self._sizes.clients // 4:
            await asyncio.sleep(0.01)
        under = await self._victim()
        for one in crowd:
            one.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        return alone, under

    async def _victim(self) -> list[Taken]:
        taken = []
        for _ in range(self._sizes.requests):
            begun, passes = time.perf_counter(), self._engine.statistics().passes
            await self._ask("victim", PROMPT, ANSWER)
            now = self._engine.statistics().passes
            taken.append(Taken(time.perf_counter() - begun, now - passes))
        return taken

    async def _attack(self) -> None:
        while True:
            try:
                await self._ask("attacker", self._draw.randrange(PROMPT, LONG), 64)
            except RequestError:
                self.refused += 1
                await asyncio.sleep(AT_ONCE)

    async def _ask(self, tenant: str, prompt: int, answer: int) -> None:
        tokens = [self._draw.randrange(4, 250) for _ in range(prompt)]
        sampling = Sampling(max_tokens=answer, temperature=0.0)
        async for _ in self._engine.generate(tokens, None, sampling, asker=Asker(tenant)):
            pass


def measure(sizes: Sizes | None = None) -> dict[str, float]:
    """The ratios, and the victim's p95 in milliseconds; a refusal of the victim's ends it."""
    sizes = sizes or Sizes()
    with _engine(sizes.cache_tokens) as engine:
        duel = Duel(engine, sizes)
        alone, under = asyncio.run(duel.fight())
    return {
        "victim_p95_ratio": _p95([t.seconds for t in under]) / _p95([t.seconds for t in alone]),
        "victim_passes_ratio": _p95([t.passes for t in under]) / _p95([t.passes for t in alone]),
        "victim_p95_ms": 1000 * _p95([t.seconds for t in under]),
        "victim_p95_alone_ms": 1000 * _p95([t.seconds for t in alone]),
        "attacker_refused": duel.refused,
    }


def _p95(values: list[float] | list[int]) -> float:
    return sorted(values)[round(0.95 * (len(values) - 1))]


def main() -> None:
    """Measure, and end with one line of JSON."""
    given = vars(harness.parser(__doc__, Sizes()).parse_args())
    path = given.pop("json")
    sizes = Sizes(**given)
    harness.finish({**measure(sizes), "sizes": asdict(sizes)}, path)


if __name__ == "__main__":
    main()
