"""What Prometheus reads from a real cluster's metrics port."""

import time
from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

SECONDS = 40
Until = Callable[[float | None], bool]


def read(series: str, **labels: str) -> float | None:
    """The series' value now; None where it is not there. To be called where Ray is connected.
    Only lines with its name are parsed: a cluster that has seen many runs tells thousands."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    said = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines(keepends=True)
    named = series.removesuffix("_total")
    for family in text_string_to_metric_families("".join(one for one in said if named in one)):
        for sample in family.samples:
            if sample.name == series and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def value(series: str, until: Until = bool, **labels: str) -> float | None:
    """Read it, and wait `until` it is right (by default: until it is there)."""
    end = time.monotonic() + SECONDS
    while not until(found := read(series, **labels)) and time.monotonic() < end:
        time.sleep(0.5)
    return found
