"""A soak of the endpoint: promotions, rollbacks, canaries and killed replicas under load.

    python tests/benchmarks/soak.py [--seconds 600] [--json PATH|-]

A cluster of its own, Ray Serve with two replicas of a tiny random model, a few clients that ask one
after the other. Every few seconds something happens to the name that they ask for, or a replica
gets SIGKILL. Every answer is held against the greedy answer that transformers' `generate` gives for
the version that the answer names: a mixture of versions, or a cut, cannot pass.
"""

import asyncio
import itertools
import random
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import harness
from results import machine, table, write_section
from soak_clients import Answers, Client
from soak_processes import Memory, engines, kill
from soak_shop import NAME, Shop, opened

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.registry.promote import rollback
from workers.config.base import InputError


@dataclass(frozen=True)
class Sizes:
    """How long, how much, how often."""

    seconds: int = 600
    clients: int = 6
    tokens: int = 32
    versions: int = 4
    replicas: int = 2
    every: float = 3.0
    """Seconds from one event to the next."""


class Trouble:
    """Makes things happen, in turn."""

    def __init__(self, shop: Shop, sizes: Sizes) -> None:
        self._shop, self._sizes = shop, sizes
        self._draw = random.Random(0)
        kinds = "promotions rollbacks canaries aborts shadows kills not_possible"
        self.counts: dict[str, int] = dict.fromkeys(kinds.split(), 0)

    async def run(self, done: asyncio.Event) -> None:
        """Until done."""
        promote, kill, back = self._promote, self._kill, self._rollback
        turn = (promote, kill, back, self._canary, kill, back, self._shadow, promote, kill)
        for act in itertools.cycle(turn):
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), self._sizes.every)
            if done.is_set():
                return
            try:
                self.counts[await asyncio.to_thread(act)] += 1
            except InputError:  # there is nothing to go back to
                self.counts["not_possible"] += 1

    def _other(self) -> int:
        """Any version but the champion."""
        state = self._shop.registry.rollout(NAME)
        assert state is not None
        versions = enumerate(self._shop.versions)
        return self._draw.choice([n for n, version in versions if version.id != state.champion])

    def _promote(self) -> str:
        self._shop.promote(self._other())
        return "promotions"

    def _canary(self) -> str:
        self._shop.promote(self._other(), canary="40%")
        return "canaries"

    def _shadow(self) -> str:
        self._shop.promote(self._other(), shadow=True)
        return "shadows"

    def _rollback(self) -> str:
        event = rollback(self._shop.registry, NAME, actor="soak")
        return "rollbacks" if event.action == "rollback" else "aborts"

    def _kill(self) -> str:
        """The younger replica, so that one lives long enough to show whether its memory grows."""
        living = engines()
        if len(living) < self._sizes.replicas:
            return "not_possible"
        kill(living[-1])
        return "kills"


async def soak(shop: Shop, sizes: Sizes) -> tuple[Answers, Trouble, Memory]:
    """Load and trouble, until the time is over and the last request has ended."""
    score, trouble, memory, done = Answers(), Trouble(shop, sizes), Memory(), asyncio.Event()
    clients = [Client(shop, f"user-{n}", sizes.tokens, score) for n in range(sizes.clients)]
    running = [asyncio.create_task(one.run(done)) for one in (*clients, trouble)]
    end = time.monotonic() + sizes.seconds
    while time.monotonic() < end:
        await asyncio.to_thread(memory.measure)
        await asyncio.sleep(1)
    done.set()
    await asyncio.gather(*running)
    return score, trouble, memory


def told(sizes: Sizes, result: dict[str, object]) -> str:
    """The section of RESULTS.md."""
    about = (
        f"{sizes.seconds} s, {sizes.replicas} replicas, {sizes.clients} clients, {sizes.versions} "
        f"versions of a tiny model, something every {sizes.every:g} s. Memory: the last fifth of a "
        "process's time over its second fifth, the worst kind of process."
    )
    figures = {name: str(value) for name, value in result.items() if name != "sizes"}
    return f"{machine()}\n\n{about}\n\n{table(list(figures), [list(figures.values())])}"


def main() -> int:
    """Run, print what went wrong, and end with one line of JSON; 1 where anything did."""
    parser = harness.parser(__doc__, Sizes())
    parser.add_argument("--results", type=Path, metavar="PATH", help="write a section there")
    given = vars(parser.parse_args())
    path, results = given.pop("json"), given.pop("results")
    sizes = Sizes(**given)
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Path(folder), sizes.versions, sizes.replicas, sizes.tokens) as shop,
    ):
        score, trouble, memory = asyncio.run(soak(shop, sizes))
    out, growth = harness.output(path), memory.growth()
    for problem in (score.failures + score.mixed)[:20]:
        print(problem, file=out)
    print(f"answers by version: {dict(score.versions)}; memory: {growth}", file=out)
    for kind, curve in memory.curves().items():
        print(f"{kind}: MiB by tenths of the time {curve}", file=out)
    result = {
        "requests": score.requests,
        "failed": len(score.failures),
        "mixed_versions": len(score.mixed),
        **trouble.counts,
        "memory_growth": round(max(growth.values()), 3),
        "sizes": asdict(sizes),
    }
    if results is not None:
        write_section("soak.py", told(sizes, result), results)
    harness.finish(result, path)
    return 1 if score.failures or score.mixed else 0


if __name__ == "__main__":
    sys.exit(main())
