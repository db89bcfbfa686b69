"""What the Python of each node can do. It runs on a cluster as a job, and needs nothing there but
Ray: what it looks for may be missing.

Its working directory holds `probe.json`: the packages whose versions it tells, the modules that it
imports, and its patience. It prints one line, MARK and JSON.
"""

import importlib
import json
import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.inventory import inventory
from cluster.placement import Demand, wait_for_room

ASKED = "probe.json"
MARK = "moetune-probe "
OWN = "moetune"


def look(packages: Sequence[str], modules: Sequence[str]) -> dict[str, Any]:
    """What a process on this node finds."""
    broken = {name: said for name in modules if (said := _failure(name))}
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in packages},
        "broken": broken,
        "gpus_seen": _gpus(),
        "has_moetune": _has_moetune(),
    }


def main() -> None:
    """Look on every living node at the same time, and print what is found."""
    import ray

    asked = json.loads(Path(ASKED).read_text())
    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    if not inventory().cpus:
        with suppress(ClusterError):  # an autoscaler brings a node, or none
            wait_for_room(Demand("the look at the nodes", "task", 1, 1), asked["seconds"])
    print(MARK + json.dumps(_everywhere(ray, asked)), flush=True)


def _everywhere(ray: Any, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    looks = {node["NodeID"]: _sent(ray, node["NodeID"], asked) for node in nodes}
    ray.wait(list(looks.values()), num_returns=len(looks), timeout=asked["seconds"])
    return [
        {
            "host": node["NodeManagerAddress"],
            "cpus": node["Resources"].get("CPU", 0),
            "gpus": node["Resources"].get("GPU", 0),
            **_told(ray, looks[node["NodeID"]], asked["seconds"]),
        }
        for node in nodes
    ]


def _sent(ray: Any, node_id: str, asked: Mapping[str, Any]) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(look)
    return task.remote(asked["packages"], asked["modules"])


def _told(ray: Any, reference: Any, seconds: float) -> dict[str, Any]:
    if not ray.wait([reference], timeout=0)[0]:
        return {"failed": f"no answer within {seconds:g} s"}
    try:
        return dict(ray.get(reference))
    except Exception as error:
        return {"failed": _line(error)}


def _failure(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:
        return _line(error)
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> int:
    try:
        return int(importlib.import_module("torch").cuda.device_count())
    except Exception:  # said of the modules that need it
        return 0


def _has_moetune() -> bool:
    """Whether it is installed here: this job has brought its own copy."""
    places = [place for place in sys.path if place and Path(place).resolve() != _here()]
    return _version(OWN) is not None or PathFinder.find_spec("orchestrator", places) is not None


def _here() -> Path:
    return Path(__file__).resolve().parents[1]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
