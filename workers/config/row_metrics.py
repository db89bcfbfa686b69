"""How the answer to a row may be scored: by metrics of ours, or by one of an installed package.

A package gives a metric by an entry point of the group `moetune.metrics`. Here only its name is
read; `workers.data.plugged_metrics` imports it, where a row is scored by it.
"""

import socket
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from workers.config.base import InputError

ROW_METRICS = ("acc", "acc_norm", "exact_match", "number_match", "slot_f1", "rouge_l")
"""Those of ours; `workers.data.text_metrics` has the functions."""
GROUP = "moetune.metrics"


def known_metrics() -> tuple[str, ...]:
    """All names that a row or a job may give here. A package's metric that is called as one of ours
    is not reached."""
    return tuple(dict.fromkeys((*ROW_METRICS, *sorted(_plugged()))))


def unknown_metric(metric: str) -> str:
    """What to say of a name that is none of them. It tells the machine: another one may have it."""
    return (
        f"unknown metric {metric!r}; known are {', '.join(known_metrics())}, and no package that "
        f"is installed on {socket.gethostname()} gives it"
    )


def check_metric(metric: str, where: str) -> None:
    """InputError for a metric that is not known here, listing those that are."""
    if metric not in ROW_METRICS and metric not in _plugged():
        raise InputError(f"{where}: {unknown_metric(metric)}")


def plugged(metric: str, where: str) -> EntryPoint:
    """The entry point of a package's metric. InputError where none or more than one gives it."""
    check_metric(metric, where)
    first, *others = _plugged()[metric]
    if others:
        whose = " and ".join(map(package, (first, *others)))
        raise InputError(f"{where}: metric {metric} is given by {whose}; remove all but one")
    return first


def package(entry: EntryPoint) -> str:
    """The package of an entry point, for messages."""
    return f"package {entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _plugged() -> Mapping[str, tuple[EntryPoint, ...]]:
    return _installed(tuple(sys.path))


@lru_cache(maxsize=1)
def _installed(_: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    """By name. Every package's files are read for it, which must not be for every row."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found
