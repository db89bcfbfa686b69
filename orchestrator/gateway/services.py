"""What stands around the gateway's routes."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from orchestrator.auth.keys import KeyRing
from orchestrator.auth.rate_limit import RateLimiter
from orchestrator.auth.wrong_keys import WrongKeys
from orchestrator.config.limits import LimitsSpec
from orchestrator.config.rollout import GuardSpec
from orchestrator.config.serve import ServeSpec
from orchestrator.gateway.management_routes import ManagementRoutes, health_routes
from orchestrator.registry.registry import Registry
from orchestrator.registry.state import Rollout
from orchestrator.rollout.catalog import ModelCatalog
from orchestrator.rollout.checks import Drift
from orchestrator.rollout.controller import RolloutController
from orchestrator.rollout.guard import Guard
from orchestrator.rollout.metrics import ShadowMetrics
from orchestrator.rollout.progression import PlanProgression
from orchestrator.rollout.shadow_stats import Comparisons
from orchestrator.rollout.timeline import Timeline
from orchestrator.rollout.window import Windows
from orchestrator.router_health.metrics import RouterMetrics
from orchestrator.router_health.monitor import RouterHealth
from orchestrator.telemetry.audit_log import AuditLog
from orchestrator.telemetry.refresh import keep_showing
from orchestrator.telemetry.request_record import Observer, RequestRecord
from workers.engine.request import Limits

BackgroundTask = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class GatewayServices:
    """The gateway's surroundings. The defaults are an open gateway that tells nobody."""

    keys: KeyRing = field(default_factory=KeyRing)
    limiter: RateLimiter = field(default_factory=RateLimiter)
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    max_new_tokens: int = Limits().max_new_tokens
    """Longest answer of the engine."""
    observers: tuple[Observer, ...] = ()
    """Called once for every request that ended."""
    texts: bool = False
    """Whether observers are told prompts and answers."""
    routers: tuple[APIRouter, ...] = ()
    """Further routes, under /moetune/v1, for all who have a key. What changes something says with
    `wants` which scope it takes."""
    tasks: tuple[BackgroundTask, ...] = ()
    """Run for as long as the application does; cancelled at its end."""
    cors_origins: tuple[str, ...] = ()
    """Other sites whose pages may call the gateway."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beyond loopback's that a Host header may have where no key is set."""
    wrong_keys: WrongKeys = field(default_factory=WrongKeys)


@dataclass(frozen=True)
class HealthServices:
    """An observer of requests, routes, and a task for the life of the gateway."""

    monitor: RouterHealth
    audit: AuditLog | None
    router: APIRouter

    @classmethod
    def of(cls, registry: Registry, serve: ServeSpec, storage: str | Path) -> "HealthServices":
        """`storage` is the endpoint's folder."""
        monitor = RouterHealth.of(serve.health, registry)
        folder = serve.audit.folder or Path(storage) / "audit"
        audit = AuditLog(serve.audit, folder) if serve.audit.on else None
        return cls(monitor, audit, health_routes(monitor))

    def observe(self, record: RequestRecord) -> None:
        """See `orchestrator.telemetry.request_record.Observer`."""
        self.monitor(record)
        if self.audit is not None:
            self.audit(record)

    async def run(self) -> None:
        """Show metrics until cancelled, and then bring the audit's last records to the disk. To be
        run inside Ray."""
        metrics = RouterMetrics(self.monitor)
        try:
            await keep_showing(metrics.show)
        finally:
            if self.audit is not None:
                await asyncio.to_thread(self.audit.close)


@dataclass(frozen=True)
class RolloutServices:
    """An observer of requests, routes, and tasks for the life of the gateway."""

    catalog: ModelCatalog
    windows: Windows
    comparisons: Comparisons
    controller: RolloutController
    router: APIRouter
    timeline: Timeline

    @classmethod
    def of(
        cls,
        registry: Registry,
        catalog: ModelCatalog,
        spec: GuardSpec,
        drift: Drift | None = None,
    ) -> "RolloutServices":
        """`drift` judges the routing of a version, if there is somebody who can."""
        windows = Windows(spec)
        comparisons = Comparisons(windows)
        advisers = (Guard(spec, windows, drift), PlanProgression(spec, windows), comparisons)
        timeline = Timeline()
        routes = ManagementRoutes(registry, catalog, comparisons, windows, timeline)
        controller = RolloutController(registry, advisers)
        return cls(catalog, windows, comparisons, controller, routes.router(), timeline)

    def observe(self, record: RequestRecord) -> None:
        """See `orchestrator.telemetry.request_record.Observer`."""
        self.windows(record)
        self.comparisons.observe(record)

    async def run(self) -> None:
        """Look after the names until cancelled."""
        await self.controller.run(self.states)

    async def show(self) -> None:
        """Show metrics until cancelled. To be run inside Ray."""
        metrics = ShadowMetrics(self.comparisons)
        await keep_showing(lambda: metrics.show(self._now()))

    def _now(self) -> list[Rollout]:
        return [self.timeline(state) for state in list(self.catalog.states.values())]

    def states(self) -> Iterable[Rollout]:
        """What the registry said last, its times by `steady`; the observers forget the rest."""
        states = self._now()
        self.windows.forget((s.name, version) for s in states for version in s.concerned)
        self.comparisons.forget(states)
        return states
