"""Router health as series of Ray's metrics, and so of Prometheus (`ray_moetune_router_…`).

Labels are layers and versions, and none are experts or callers: `serve.health.versions` bounds
what is shown at a time, and Ray forgets a gauge that is not set any more.
"""

from orchestrator.router_health.monitor import RouterHealth
from orchestrator.router_health.report import LayerHealth, VersionHealth
from orchestrator.telemetry.series import Series

OF_VERSION = ("name", "version")
OF_LAYER = (*OF_VERSION, "layer")
LAYERS = (
    Series("moetune_router_cv", "Variation of the experts' load; 0 is even", labels=OF_LAYER),
    Series("moetune_router_entropy", "Evenness of the experts' load; 1 is even", labels=OF_LAYER),
    Series("moetune_router_doubt", "Evenness of a token's choice; 0 is certain", labels=OF_LAYER),
    Series("moetune_router_margin", "First expert's lead over the second", labels=OF_LAYER),
    Series("moetune_router_dead_experts", "Experts that get next to nothing", labels=OF_LAYER),
)
VERSIONS = (
    Series("moetune_router_drift_score", "Distance over its limit; 1 is drift", labels=OF_VERSION),
    Series("moetune_router_drift_windows", "Windows in a row beyond it", labels=OF_VERSION),
    Series("moetune_router_requests", "Requests that all this is of", labels=OF_VERSION),
)


class RouterMetrics:
    """Shows a monitor's figures. To be made inside Ray."""

    def __init__(self, monitor: RouterHealth) -> None:
        self._monitor = monitor
        self._gauges = {one.name: one.make() for one in (*LAYERS, *VERSIONS)}

    def show(self) -> None:
        """Set all gauges: to be called again within Ray's reporting interval."""
        for name, health in self._monitor.everything():
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
