"""Watches how the versions that are served route their requests: an observer of the gateway."""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from orchestrator.config.health import HealthSpec
from orchestrator.router_health.history import History
from orchestrator.router_health.layout import Places
from orchestrator.router_health.report import Health, HealthVerdict, VersionHealth, layers
from orchestrator.router_health.verdict import Judge, Samples
from orchestrator.router_health.window import RoutingWindow
from orchestrator.telemetry.request_record import RequestRecord
from workers.engine.request import RequestError

if TYPE_CHECKING:
    from orchestrator.registry.registry import Registry

QUIET = "no_requests"
"""Code of the error where nothing was seen yet."""


class RouterHealth:
    """Health and drift by version. Safe to call from several threads.

    Called with what was answered, it adds some numbers to sums and returns. Reading costs more,
    and the first time a calibration: call `health` and `drift` outside the event loop.
    """

    def __init__(self, spec: HealthSpec | None = None, samples: Samples = lambda _: None) -> None:
        self.spec = spec or HealthSpec()
        self._samples = samples
        self._judges: OrderedDict[str, Judge] = OrderedDict()
        self._counting = threading.Lock()
        self._judging = threading.Lock()

    @classmethod
    def of(cls, spec: HealthSpec, registry: "Registry") -> "RouterHealth":
        """With the references that the registry's versions bring along."""
        return cls(spec, lambda id: registry.manifest(registry.version(id)).routing_sample)

    def __call__(self, record: RequestRecord) -> None:
        """See `orchestrator.telemetry.request_record.Observer`."""
        routing = record.routing
        if routing is None or not routing.tokens or not routing.layers:
            return
        if record.role == "pinned":  # says what one asker wanted, not what users ask for
            return
        with self._counting:
            if record.version not in self._judges:
                while len(self._judges) >= self.spec.versions:
                    self._judges.popitem(last=False)
                history = History(record.version, Places.of(routing), self.spec)
                self._judges[record.version] = Judge(history, self._samples)
            self._judges.move_to_end(record.version)
            history = self._judges[record.version].history
            history.names.add(record.name or "")
            read = record.prompt_tokens + record.completion_tokens - 1  # the last is only drawn
            history.add(routing, read, record.user)

    def health(self, name: str) -> Health:
        """Of the versions that answered to a name, or of one, as `NAME@VERSION`; RequestError 404
        where none did."""
        name, _, version = name.partition("@")
        with self._counting:
            found = [
                (judge, judge.history.total())
                for id, judge in self._judges.items()
                if name in judge.history.names and version in ("", id)
            ]
        if not found:
            raise RequestError(
                f"{name}: no version with routers has answered under this name yet",
                None,
                404,
                QUIET,
            )
        return Health(name=name, versions=tuple(self._told(*one) for one in found))

    def everything(self) -> list[tuple[str, VersionHealth]]:
        """Name and health of every version watched, for metrics."""
        with self._counting:
            names = {name for judge in self._judges.values() for name in judge.history.names}
        return [(name, one) for name in sorted(names) for one in self.health(name).versions]

    def drift(self, version: str) -> HealthVerdict | None:
        """Whether the requests of a version are still routed as its reference's; None where that
        cannot be told, or not yet."""
        with self._counting:
            judge = self._judges.get(version)
        if judge is None:
            return None
        with self._judging:
            verdict = judge.verdict()
        return None if verdict.state == "unknown" else verdict

    def _told(self, judge: Judge, total: RoutingWindow) -> VersionHealth:
        with self._judging:
            drift = judge.verdict()
        return VersionHealth(
            version=judge.history.version,
            requests=total.requests,
            tokens=total.tokens,
            layers=layers(total),
            drift=drift,
        )
