"""Router health as series of Ray's metrics, and so of Prometheus (`ray_moetune_router_…`).

One label value for each layer of each version that is watched, and no label for experts or
callers: `serve.health.versions` bounds the series.
"""

import logging
import threading
from dataclasses import dataclass

from orchestrator.health.monitor import RouterHealth
from orchestrator.health.report import LayerHealth, VersionHealth

log = logging.getLogger(__name__)
REFRESH_SECONDS = 2.0
"""Ray drops a gauge that was not set for two of its reporting intervals (10 s by default)."""


@dataclass(frozen=True)
class Series:
    """A gauge: of a layer, or with `by_layer` false of a version."""

    name: str
    help: str
    by_layer: bool = True


LAYERS = (
    Series("moetune_router_cv", "Coefficient of variation of the experts' load"),
    Series("moetune_router_entropy", "Entropy of the experts' load over log E; 1 is even"),
    Series("moetune_router_doubt", "Entropy of the router's choice over log E; 0 is certain"),
    Series("moetune_router_margin", "First expert's probability less the second's"),
    Series("moetune_router_dead_experts", "Experts with less than a twentieth of an even share"),
)
VERSIONS = (
    Series("moetune_router_drift_score", "Divergence over its limit; above 1 is drift", False),
    Series("moetune_router_drift_windows", "Windows in a row that have drifted", False),
    Series("moetune_router_requests", "Requests that router health is of", False),
)


class RouterMetrics:
    """Shows a monitor's figures for as long as `close` was not called. To be made inside Ray."""

    def __init__(self, monitor: RouterHealth) -> None:
        from ray.util.metrics import Gauge

        self._monitor = monitor
        self._gauges = {
            one.name: Gauge(
                one.name, one.help, tag_keys=("name", "version", *["layer"] * one.by_layer)
            )
            for one in (*LAYERS, *VERSIONS)
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="router-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show them no more."""
        self._ended.set()
        self._thread.join(timeout=10)

    def _refresh(self) -> None:
        import ray

        while not self._ended.wait(REFRESH_SECONDS) and ray.is_initialized():
            try:
                for name, health in self._monitor.everything():
                    self._show(name, health)
            except Exception:
                log.exception("router metrics were not set")

    def _show(self, name: str, health: VersionHealth) -> None:
        labels = {"name": name, "version": health.version}
        for series, value in of_version(health).items():
            self._gauges[series].set(value, labels)
        for layer in health.layers:
            for series, value in of_layer(layer).items():
                self._gauges[series].set(value, {**labels, "layer": layer.layer})


def of_layer(layer: LayerHealth) -> dict[str, float]:
    """A layer's value of each of LAYERS."""
    values = (layer.cv, layer.entropy, layer.doubt, layer.margin, len(layer.dead))
    return {one.name: float(value) for one, value in zip(LAYERS, values, strict=True)}


def of_version(health: VersionHealth) -> dict[str, float]:
    """A version's value of each of VERSIONS; no score before a window was judged."""
    drift = health.drift
    values = (drift.score, drift.sustained, health.requests)
    found = zip(VERSIONS, values, strict=True)
    return {one.name: float(value) for one, value in found if value is not None}
