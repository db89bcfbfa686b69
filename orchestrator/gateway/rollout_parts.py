"""All of roll-out that a gateway carries, put together."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import APIRouter

from orchestrator.config.rollout import GuardSpec
from orchestrator.gateway.management_routes import routes
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout
from orchestrator.rollout.catalog import Catalogue
from orchestrator.rollout.checks import Drift
from orchestrator.rollout.controller import Steward
from orchestrator.rollout.guard import Guard
from orchestrator.rollout.metrics import ShadowMetrics
from orchestrator.rollout.progression import Plans
from orchestrator.rollout.shadow_stats import Comparisons
from orchestrator.rollout.timeline import Timeline
from orchestrator.rollout.window import Windows
from orchestrator.telemetry.request_record import Answered
from orchestrator.telemetry.serving_metrics import keep_showing


@dataclass(frozen=True)
class RolloutParts:
    """An observer of requests, routes, and tasks for the life of the gateway."""

    catalogue: Catalogue
    windows: Windows
    comparisons: Comparisons
    steward: Steward
    router: APIRouter
    timeline: Timeline

    @classmethod
    def of(
        cls, registry: Registry, catalogue: Catalogue, spec: GuardSpec, drift: Drift | None = None
    ) -> "RolloutParts":
        """`drift` judges the routing of a version, if there is somebody who can."""
        windows = Windows(spec)
        comparisons = Comparisons(windows)
        advisers = (Guard(spec, windows, drift), Plans(spec, windows), comparisons)
        timeline = Timeline()
        router = routes(registry, catalogue, comparisons, windows, timeline)
        steward = Steward(registry, advisers)
        return cls(catalogue, windows, comparisons, steward, router, timeline)

    def observe(self, answered: Answered) -> None:
        """See `orchestrator.telemetry.request_record.Observer`."""
        self.windows(answered)
        self.comparisons.observe(answered)

    async def run(self) -> None:
        """Look after the names until cancelled."""
        await self.steward.run(self.states)

    async def show(self) -> None:
        """Show metrics until cancelled. To be run inside Ray."""
        metrics = ShadowMetrics(self.comparisons)
        await keep_showing(lambda: metrics.show(self._now()))

    def _now(self) -> list[Rollout]:
        return [self.timeline(state) for state in list(self.catalogue.states.values())]

    def states(self) -> Iterable[Rollout]:
        """What the registry said last, its times by `steady`; the observers forget the rest."""
        states = self._now()
        self.windows.forget((s.name, version) for s in states for version in s.concerned)
        self.comparisons.forget(states)
        return states
