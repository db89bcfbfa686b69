"""A soak of the endpoint: promotions, rollbacks, canaries and killed replicas under load.

    python tests/benchmarks/soak.py [--seconds 600] [--json PATH|-]

A cluster of its own, Ray Serve with two replicas of a tiny random model, a few clients that ask one
after the other. Every few seconds something happens to the name that they ask for, or a replica
gets SIGKILL. Every answer is held against the greedy answer that transformers' `generate` gives for
the version that the answer names: a mixture of versions, or a cut, cannot pass.
"""

import asyncio
import itertools
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import harness
from results import machine, write_section
from soak_clients import Answers, Client
from soak_processes import Memory, engines, kill
from soak_shop import NAME, Shop, opened

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.promotion import rollback
from workers.spec import InputError


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
    """Makes things happen, in turn; the version is another one each time."""

    def __init__(self, shop: Shop, sizes: Sizes) -> None:
        self._shop, self._sizes = shop, sizes
        self.counts: dict[str, int] = dict.fromkeys(
            ("promotions", "rollbacks", "canaries", "shadows", "kills", "refused"), 0
        )

    async def run(self, done: asyncio.Event) -> None:
        """Until done."""
        turn = (self._promote, self._kill, self._canary, self._rollback, self._shadow, self._kill)
        for number, act in enumerate(itertools.cycle(turn), 1):
            try:
                await asyncio.wait_for(done.wait(), self._sizes.every)
            except TimeoutError:
                try:
                    self.counts[await asyncio.to_thread(act, number % self._sizes.versions)] += 1
                except InputError:  # it is the champion already, or there is nothing to go back to
                    self.counts["refused"] += 1
            else:
                return

    def _promote(self, number: int) -> str:
        self._shop.promote(number)
        return "promotions"

    def _canary(self, number: int) -> str:
        self._shop.promote(number, canary="40%")
        return "canaries"

    def _shadow(self, number: int) -> str:
        self._shop.promote(number, shadow=True)
        return "shadows"

    def _rollback(self, _: int) -> str:
        rollback(self._shop.registry, NAME, actor="soak")
        return "rollbacks"

    def _kill(self, _: int) -> str:
        """The younger replica, so that one lives long enough to show whether its memory grows."""
        living = engines()
        if len(living) < self._sizes.replicas:
            return "refused"
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


def main() -> int:
    arguments = harness.parser(__doc__, Sizes())
    arguments.add_argument("--results", type=Path, help="RESULTS.md to write a section to")
    given = vars(arguments.parse_args())
    path, results = given.pop("json"), given.pop("results")
    sizes = Sizes(**given)
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Path(folder), sizes.versions, sizes.replicas, sizes.tokens) as shop,
    ):
        score, trouble, memory = asyncio.run(soak(shop, sizes))
    out = harness.output(path)
    for problem in (score.failures + score.mixed)[:20]:
        print(problem, file=out)
    growth = memory.growth()
    print(f"answers by version: {dict(score.versions)}; memory: {growth}", file=out)
    result = {
        "requests": score.requests,
        "failed": len(score.failures),
        "mixed_versions": len(score.mixed),
        **trouble.counts,
        "memory_growth": round(max(growth.values()), 3),
        "sizes": asdict(sizes),
    }
    if results is not None:
        write_section("soak.py", f"{machine()}\n\n`{result}`", results)
    harness.finish(result, path)
    return 1 if score.failures or score.mixed else 0


if __name__ == "__main__":
    sys.exit(main())
