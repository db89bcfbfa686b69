"""Names over HTTP: what stands behind each, promote, rollback and abort; and router health."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from orchestrator.auth.keys import Caller, wants
from orchestrator.openai.body import Body
from orchestrator.registry.gate import judged_by
from orchestrator.registry.models import Event
from orchestrator.registry.plan import stage
from orchestrator.registry.promote import GateRefused, abort, promote, rollback
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import RolloutState
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.rollout.progression import Reach, reach
from orchestrator.rollout.shadow_stats import Comparisons, ShadowFigures
from orchestrator.rollout.timeline import Timeline
from orchestrator.rollout.window import Windows
from orchestrator.router_health.monitor import RouterHealth
from orchestrator.router_health.report import Health
from orchestrator.telemetry.request_record import steady
from workers.config.base import InputError, StorageError
from workers.engine.request import RequestError

Reader = Annotated[Caller, Depends(wants("infer"))]
Promoter = Annotated[Caller, Depends(wants("promote"))]
Text = Annotated[str, Field(max_length=1000)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}(@[0-9a-f]{4,64})?$"
EVENTS = 200
"""Of a name's log, told at once."""


class NameState(RolloutState):
    """What stands behind a name, and what this gateway has seen of it."""

    shadow_seen: ShadowFigures | None
    requests: Reach | None
    refused: dict[str, str]
    """Versions that cannot be served here, and why."""


class NameStates(TypedDict):
    """Of every name."""

    rollouts: list[NameState]


class NameHistory(TypedDict):
    """A name's latest events, oldest first."""

    name: str
    events: list[Event]


class Why(Body):
    """Body of a rollback or an abort."""

    reason: Text = ""


class Promotion(Why):
    """Body of a promotion."""

    version: Annotated[str, Field(max_length=64)]
    """A version's id, as `moetune history` and the studies' reports name it."""
    canary: Annotated[str, Field(max_length=20)] | None = None
    """Share of the users, such as `10%`."""
    plan: Annotated[str, Field(max_length=200)] | None = None
    """Such as `5%,25%,100% every 30m`."""
    shadow: bool = False
    force: bool = False
    metric: Annotated[str, Field(max_length=200)] | None = None
    """What versions are compared on; left out: what the champion was judged by."""
    mode: Literal["min", "max"] = "min"


@dataclass(frozen=True)
class ManagementRoutes:
    """`GET /rollouts`, `GET /rollouts/NAME`, `GET /rollouts/NAME/history`,
    `POST /rollouts/NAME/{promote,rollback,abort}`."""

    registry: Registry
    catalog: ModelCatalog
    comparisons: Comparisons
    windows: Windows
    timeline: Timeline

    def router(self) -> APIRouter:
        """For the application."""
        router = APIRouter(prefix="/rollouts", tags=["roll-out"])
        router.get("")(self.all)
        router.get("/{name}")(self.one)
        router.get("/{name}/history")(self.history)
        router.post("/{name}/promote")(self.promote)
        router.post("/{name}/rollback")(self.rollback)
        router.post("/{name}/abort")(self.abort)
        return router

    async def all(self, _: Reader) -> NameStates:
        """Every name's state."""
        return {"rollouts": [self._state(name) for name in sorted(self.catalog.states)]}

    async def one(self, name: str, _: Reader) -> NameState:
        """A name's state."""
        return self._state(name)

    async def history(self, name: str, _: Reader) -> NameHistory:
        """A name's log: its latest events, oldest first."""
        state = self.catalog.states.get(name)
        events = await self._events(name, since=state.revision - EVENTS if state else 0)
        return {"name": name, "events": events[-EVENTS:]}

    async def promote(self, name: str, body: Promotion, caller: Promoter) -> Event:
        """Make a version champion, canary or shadow, if the gate lets it."""
        with of_the_request():
            chosen = stage(body.canary, body.plan, body.shadow)
        events = await self._events(name)
        judged = (body.metric, body.mode) if body.metric else judged_by(events)
        if judged is None:
            raise RequestError(f"nothing was judged for {name} yet: name a metric", "metric")
        metric, mode = judged
        return await self._done(
            lambda: promote(
                self.registry,
                body.version,
                name,
                actor=caller.id,
                metric=metric,
                mode=mode,
                reason=body.reason,
                force=body.force,
                stage=chosen,
            )
        )

    async def rollback(self, name: str, body: Why, caller: Promoter) -> Event:
        """End the canary, or return to the champion before."""
        return await self._done(
            lambda: rollback(self.registry, name, actor=caller.id, reason=body.reason)
        )

    async def abort(self, name: str, body: Why, caller: Promoter) -> Event:
        """End the canary, or the shadow."""
        return await self._done(
            lambda: abort(self.registry, name, actor=caller.id, reason=body.reason)
        )

    async def _done(self, decide: Callable[[], Event]) -> Event:
        """The event; by then this gateway's traffic has moved, if the version is loaded."""
        with of_the_request():
            event = await run_in_threadpool(decide)
        await self.catalog.poll()
        return event

    async def _events(self, name: str, since: int = 0) -> list[Event]:
        with of_the_request():
            return await run_in_threadpool(self.registry.history, name, since)

    def _state(self, name: str) -> NameState:
        state = self.catalog.states.get(name)
        if state is None:
            raise RequestError(f"nothing was promoted to {name}", "name", 404, "not_found")
        now, ours = steady(), self.timeline(state)
        refused = {v: why for v, why in self.catalog.refused.items() if v in state.concerned}
        return {
            **state.as_dict(),
            "shadow_seen": self.comparisons.figures(ours, now),
            "requests": reach(ours, self.windows, now),
            "refused": refused,
        }


@contextmanager
def of_the_request() -> Iterator[None]:
    """What is refused in here is wrong with the request, unless it is our storage that fails."""
    try:
        yield
    except (RequestError, StorageError):
        raise
    except GateRefused as error:
        raise RequestError(str(error), "version", 409, "gate_refused") from None
    except InputError as error:
        raise RequestError(str(error)) from None


def health_routes(monitor: RouterHealth) -> APIRouter:
    """`GET /health/{name}`, to be included under /moetune/v1 for keys that may ask (`infer`)."""
    router = APIRouter()

    @router.get("/health/{name}")
    def health(name: Annotated[str, Path(pattern=NAME)]) -> Health:
        """Load, balance and drift of each layer of the versions that answered to a name."""
        return monitor.health(name)  # no coroutine: it may calibrate, and FastAPI has threads

    return router
