"""Attacks on the guard in simulated time: what moves a roll-out that should not, and what must.

    python tests/benchmarks/attacks/guard.py [--rounds 1] [--every 5] [--seed 0] [--json PATH|-]

The guard, the plans and what they look at are the product's own; the engine and its clock are
simulated, so hours of traffic take seconds. In honest changes of workload and under attacks both
versions are equal, and every event is one too many (`guard_events`, and their share of all that was
played, `false_alarms`). Versions at fault must be caught (`caught`, and after how many seconds).
"""

import random
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import harness
from attacks.guard_cases import ATTACKS, CANARY, CHAMPION, FAULTS, HONEST, PLAN, SECONDS, TURN, Case
from attacks.guard_engine import Engine, moment

from orchestrator.config.rollout import GuardSpec
from orchestrator.registry.log import Decision
from orchestrator.registry.state import Canary, Rollout
from orchestrator.rollout.guard import Guard
from orchestrator.rollout.progression import PlanProgression
from orchestrator.rollout.window import Windows


@dataclass(frozen=True)
class Sizes:
    """How often each case is played, and from which beginning."""

    rounds: int = 1
    every: float = 5.0
    """Simulated seconds from one look of the guard to the next."""
    seed: int = 0


def play(case: Case, seed: int, every: float) -> tuple[float, Decision] | None:
    """The first event of a case, and how many seconds after the turn it came."""
    draw, spec = random.Random(seed), GuardSpec()
    windows = Windows(spec)
    advisers = (Guard(spec, windows), *([PlanProgression(spec, windows)] if case.plan else []))
    look = TURN
    for at, record in Engine(draw, case.slow).answer(case.asks(draw)):
        while look <= min(at, SECONDS):
            advice = (adviser(_state(case), moment(look)) for adviser in advisers)
            if decision := next((one for one in advice if one), None):
                return look - TURN, decision
            look += every
        windows(record)
    return None


def _state(case: Case) -> Rollout:
    since, turn = moment(-60), moment(TURN)
    if case.moves == "champion":
        return Rollout("home", 2, (CHAMPION, CANARY), turn, predecessor=CHAMPION)
    return Rollout("home", 2, (CHAMPION,), since, canary=Canary(CANARY, PLAN, turn, turn))


def played(cases: Mapping[str, Case], sizes: Sizes) -> dict[str, list[tuple[float, Decision]]]:
    """The events of each case, in all rounds."""
    seeds = range(sizes.seed, sizes.seed + sizes.rounds)
    events = {
        name: [play(case, seed, sizes.every) for seed in seeds] for name, case in cases.items()
    }
    return {name: [one for one in found if one] for name, found in events.items()}


def measure(sizes: Sizes = Sizes()) -> dict[str, float]:
    """`guard_events`: in honest times and under attack; the faults' `caught` is 1 if all were."""
    honest, attacks = played(HONEST, sizes), played(ATTACKS, sizes)
    faults = played(FAULTS, sizes)
    for name, events in (honest | attacks | faults).items():
        told = sorted({f"{one.action}: {one.evidence.get('check', 'plan')}" for _, one in events})
        late = statistics.median([at for at, _ in events]) if events else 0
        shown = f"{', '.join(told)}, after {late:.0f} s" if events else "nothing"
        print(f"{name:45} {len(events):3} of {sizes.rounds}  {shown}", file=sys.stderr)
    alarms = {
        "honest_events": float(sum(map(len, honest.values()))),
        "attack_events": float(sum(map(len, attacks.values()))),
    }
    return {
        "guard_events": sum(alarms.values()),
        **alarms,
        "false_alarms": sum(alarms.values()) / sizes.rounds / len(honest | attacks),
        "caught": sum(map(len, faults.values())) / sizes.rounds / len(faults),
        "caught_after_seconds": statistics.median(
            [at for events in faults.values() for at, _ in events] or [SECONDS]
        ),
        "quiet_hours": sizes.rounds * len(honest | attacks) * SECONDS / 3600,
    }


def main() -> None:
    """Play all cases; the exit code says whether the log stayed as it should."""
    given = vars(harness.parser(__doc__, Sizes()).parse_args())
    path = given.pop("json")
    found = measure(Sizes(**given))
    harness.finish(found, path)
    sys.exit(bool(found["guard_events"]) or found["caught"] < 1)


if __name__ == "__main__":
    main()
