"""Who asks what in simulated time: honest changes of workload, attacks, and versions at fault."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from attacks.guard_engine import Ask

from orchestrator.registry.plan import parse_plan
from orchestrator.rollout.traffic import Served, TrafficSplit
from workers.engine.request import AdapterRef

CHAMPION, CANARY = "a", "b"
SECONDS = 420.0
TURN = 120.0
"""When it begins: a canary, a new champion, a change of workload."""
USERS = [f"user {number}" for number in range(80)]
PLAN = parse_plan("25%,100% every 2m")
Moves = Literal["canary", "champion"]
Scale = Callable[[float], float]


def _served(version: str) -> Served:
    return Served(f"home@{version}", AdapterRef(version, ""), "home")


SPLIT = TrafficSplit(_served(CHAMPION), _served(CANARY), PLAN.steps[0])


def _as_ever(_: float) -> float:
    return 1.0


def _from_turn(times: float) -> Scale:
    return lambda at: times if at >= TURN else 1.0


def _growing(times: float) -> Scale:
    return lambda at: 1 + (times - 1) * max(0.0, at - TURN) / (SECONDS - TURN)


def _in_bursts(at: float) -> float:
    return 2.0 if math.sin(at / 7) > 0.5 else 0.4


@dataclass(frozen=True)
class Crowd:
    """People who ask one another's like."""

    users: tuple[str, ...] = tuple(USERS)
    rate: float = 3.0
    """Requests a second."""
    prompt: float = 50.0
    """Median tokens."""
    answer: float = 20.0
    begins: float = 0.0
    pinned: str | None = None
    """The version that they name."""
    fate: dict[str, object] = field(default_factory=dict)
    """Fields of all their requests."""
    louder: Scale = _as_ever
    longer: Scale = _as_ever
    wordier: Scale = _as_ever

    def asks(self, draw: random.Random, version_at: Callable[[float], str]) -> Iterator[Ask]:
        """Their requests, in order; `version_at` is the champion's name at a time."""
        at = self.begins
        favour = [1 / (1 + rank) for rank in range(len(self.users))]
        while (at := at + draw.expovariate(self.rate * self.louder(at))) < SECONDS:
            [user] = draw.choices(self.users, favour)
            prompt = round(draw.lognormvariate(math.log(self.prompt * self.longer(at)), 0.6))
            answer = round(draw.lognormvariate(math.log(self.answer * self.wordier(at)), 0.5))
            prompt, answer = min(max(prompt, 8), 2000), min(max(answer, 1), 256)
            cached = prompt // 2 // 16 * 16 if draw.random() < 0.4 else 0
            ask = Ask(at, version_at(at), "served", user, prompt, answer, cached)
            yield replace(ask, **self.fate)


@dataclass(frozen=True)
class Case:
    """What happens in one simulated time."""

    crowds: tuple[Crowd, ...] = (Crowd(),)
    moves: Moves = "canary"
    """Whether `b` becomes canary at the turn, or champion in place of `a`."""
    plan: bool = False
    """Whether the canary's plan goes on by itself."""
    slow: dict[str, float] = field(default_factory=dict)
    failing: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Of versions, how they fail and how often."""

    def asks(self, draw: random.Random) -> list[Ask]:
        """All requests, in order, as they are routed."""
        found = [
            self._routed(one, crowd, draw)
            for crowd in self.crowds
            for one in crowd.asks(draw, self._champion_at)
        ]
        return sorted(found, key=lambda ask: ask.at)

    def _champion_at(self, at: float) -> str:
        return CANARY if self.moves == "champion" and at >= TURN else CHAMPION

    def _routed(self, ask: Ask, crowd: Crowd, draw: random.Random) -> Ask:
        if crowd.pinned:
            ask = replace(ask, version=crowd.pinned, role="pinned")
        elif self.moves == "canary" and ask.at >= TURN:
            route = SPLIT.route(ask.user)
            ask = replace(ask, version=route.served.fingerprint, role=route.role)
        error, share = self.failing.get(ask.version, ("", 0.0))
        return replace(ask, error=error) if draw.random() < share and not ask.error else ask


def _met(role: str, count: int) -> tuple[str, ...]:
    """Names that an asker takes so as to meet the canary, or not to."""
    names = (f"asker {number}" for number in range(10_000))
    return tuple(name for name in names if SPLIT.route(name).role == role)[:count]


ON_CANARY, ON_CHAMPION = _met("canary", 20), _met("served", 20)
ELSEWHERE = tuple(user for user in USERS if SPLIT.route(user).role == "served")


def attack(users: tuple[str, ...] = ON_CANARY, rate: float = 1.0, **fields: object) -> Crowd:
    """An asker who begins at the turn."""
    return Crowd(users=users, rate=rate, begins=TURN, **fields)  # type: ignore[arg-type]


ENDLESS = {"error": "invalid_schema"}
HABITS = Crowd(users=ON_CANARY[:1], rate=1.5, prompt=900, answer=150)
HONEST: dict[str, Case] = {
    "steady": Case(),
    "steady, new champion": Case(moves="champion"),
    "prompts get longer": Case((Crowd(longer=_from_turn(8)),)),
    "prompts get longer, new champion": Case((Crowd(longer=_from_turn(8)),), "champion"),
    "answers get longer": Case((Crowd(wordier=_from_turn(5)),)),
    "answers get longer, new champion": Case((Crowd(wordier=_from_turn(5)),), "champion"),
    "load rises": Case((Crowd(louder=_growing(8)),)),
    "load rises, new champion": Case((Crowd(louder=_growing(8)),), "champion"),
    "load comes in bursts": Case((Crowd(louder=_in_bursts),)),
    "a user with other habits on the canary": Case((Crowd(), HABITS)),
    "a user with short questions on the canary": Case(
        (Crowd(prompt=300), replace(HABITS, prompt=12, answer=3))
    ),
}
ATTACKS: dict[str, Case] = {
    "endless schemas at the canary": Case((Crowd(), attack(fate=ENDLESS))),
    "endless schemas at a new champion": Case(
        (Crowd(), attack(ON_CHAMPION, fate=ENDLESS)), "champion"
    ),
    "long questions at the canary": Case((Crowd(), attack(prompt=1500, answer=5))),
    "long questions at a new champion": Case(
        (Crowd(), attack(ON_CHAMPION, prompt=1500, answer=5)), "champion"
    ),
    "pins for the canary": Case((Crowd(users=ELSEWHERE), attack(pinned=CANARY, rate=2)), plan=True),
    "pins against the canary": Case(
        (Crowd(), attack(pinned=CANARY, prompt=1500, fate={"error": "engine_error"}))
    ),
    "pins against a new champion": Case(
        (Crowd(), attack(pinned=CANARY, fate={"error": "engine_error"})), "champion"
    ),
    "slow readers at the canary": Case((Crowd(), attack(fate={"reading": 0.5}))),
    "slow readers at a new champion": Case(
        (Crowd(), attack(ON_CHAMPION, fate={"reading": 0.5})), "champion"
    ),
    "large n at the canary": Case((Crowd(), attack(rate=0.3, fate={"n": 16}))),
    "large n at a new champion": Case(
        (Crowd(), attack(ON_CHAMPION, rate=0.3, fate={"n": 16})), "champion"
    ),
    "disconnects at the canary": Case((Crowd(), attack(answer=200, fate={"leaves": 0.3}))),
    "time limits at the canary": Case((Crowd(), attack(answer=250, fate={"limit": 2.0}))),
    "time limits at a new champion": Case(
        (Crowd(), attack(ON_CHAMPION, answer=250, fate={"limit": 2.0})), "champion"
    ),
}
PINS = attack(pinned=CANARY, rate=3)
FAULTS: dict[str, Case] = {
    "a canary fails": Case(failing={CANARY: ("engine_error", 0.25)}),
    "a failing canary under good pins": Case(
        (Crowd(), PINS), failing={CANARY: ("engine_error", 0.25)}
    ),
    "a new champion fails": Case(moves="champion", failing={CANARY: ("engine_error", 0.25)}),
    "a canary is not finite": Case(failing={CANARY: ("non_finite", 0.05)}),
    "a new champion is not finite": Case(moves="champion", failing={CANARY: ("non_finite", 0.05)}),
    "a canary is 3 times slower": Case(slow={CANARY: 3.0}),
    "a canary is 5 times slower": Case(slow={CANARY: 5.0}),
    "a new champion is 3 times slower": Case(moves="champion", slow={CANARY: 3.0}),
}
