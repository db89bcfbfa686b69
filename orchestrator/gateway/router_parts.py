"""All of router health and audit that a gateway carries, put together."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter

from orchestrator.gateway.router_routes import routes
from orchestrator.router_health.metrics import RouterMetrics
from orchestrator.router_health.monitor import RouterHealth
from orchestrator.telemetry.audit_log import AuditLog
from orchestrator.telemetry.request_record import Answered
from orchestrator.telemetry.serving_metrics import keep_showing

if TYPE_CHECKING:
    from orchestrator.config.job import ServeSpec
    from orchestrator.registry.registry import Registry


@dataclass(frozen=True)
class HealthParts:
    """An observer of requests, routes, and a task for the life of the gateway."""

    monitor: RouterHealth
    audit: AuditLog | None
    router: APIRouter

    @classmethod
    def of(cls, registry: "Registry", serve: "ServeSpec", storage: str | Path) -> "HealthParts":
        """`storage` is the endpoint's folder."""
        monitor = RouterHealth.of(serve.health, registry)
        folder = serve.audit.folder or Path(storage) / "audit"
        audit = AuditLog(serve.audit, folder) if serve.audit.on else None
        return cls(monitor, audit, routes(monitor))

    def observe(self, answered: Answered) -> None:
        """See `orchestrator.telemetry.request_record.Observer`."""
        self.monitor(answered)
        if self.audit is not None:
            self.audit(answered)

    async def run(self) -> None:
        """Show metrics until cancelled, and then bring the audit's last records to the disk. To be
        run inside Ray."""
        metrics = RouterMetrics(self.monitor)
        try:
            await keep_showing(metrics.show)
        finally:
            if self.audit is not None:
                await asyncio.to_thread(self.audit.close)
