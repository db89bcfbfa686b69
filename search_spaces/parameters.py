"""Reads the parameters of a space: which field, what it may be, and after which others."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from search_spaces.ranges import Condition, Range, read_conditions, read_range
from search_spaces.sources import TRAINING_ROWS, with_sources
from workers.config.base import InputError
from workers.config.places import placed
from workers.config.routing import ROUTERS, RoutingSpec
from workers.config.yaml_text import read_yaml

NUM_EXPERTS, ROUTING = "adapter.num_experts", "adapter.routing"
_PRESETS = Path(__file__).parent / "presets"
# Without a router, nothing that shapes routing has an effect; but how many experts a token is sent
# to is said in every trial, for it must not be more than there are.
_ROUTED_ONLY = frozenset(
    {
        *(f"adapter.{name}" for name in RoutingSpec.model_fields),
        "adapter.shared_a",
        "optimizer.router_lr_ratio",
    }
) - {"adapter.experts", NUM_EXPERTS}
_LOSSES = "loss."  # All of them are of routed layers.
# Trials that differ here could not be compared, or would not fit the places reserved for them.
_FIXED_BY_JOB = ("model", "evaluation", "parallel", "data")
_STILL_FREE = (TRAINING_ROWS, "data.max_rows")


@dataclass(frozen=True)
class Parameter:
    """A field of the training specification, what it may be, and when it is asked for."""

    path: str
    range: Range
    when: tuple[Condition, ...]
    is_selective: bool = False
    """Of a number of slots, such as top_k: below the number of experts where there are several."""


def read_parameter(path: str, entry: Any, where: str) -> Parameter:
    """The parameter that an entry of a space states; InputError if it cannot vary or be read."""
    if not may_vary(path):
        raise InputError(
            f"{where}: {path}: set by the job, the same for every trial; a space may vary "
            f"adapter, loss, optimizer, seed, {', '.join(_STILL_FREE)}"
        )
    when = read_conditions(entry, f"{where}: {path}")
    is_slots = path in slot_paths()
    if path.startswith(_LOSSES) or (path in _ROUTED_ONLY and not is_slots):
        when = (Condition(NUM_EXPERTS, "above", 1), *when)
    if strategies := _read_with(path):
        when = (Condition(ROUTING, "in", strategies), *when)
    is_selective = _is_selective(path, entry, f"{where}: {path}")
    return Parameter(path, read_range(entry, f"{where}: {path}"), when, is_selective)


def slot_paths() -> list[str]:
    """Fields that say how many experts a token is sent to: at most as many as there are."""
    paths = map(slots_path, ROUTERS)
    return list(dict.fromkeys(path for path in paths if path))


def slots_path(routing: Any) -> str | None:
    """The one that a strategy reads; None where there is none."""
    slots = ROUTERS[routing].slots if routing in list(ROUTERS) else None
    return f"adapter.{slots}" if isinstance(slots, str) else None


def _read_with(path: str) -> tuple[str, ...]:
    """The strategies that alone read a field; none where all do."""
    field = path.removeprefix("adapter.")
    return tuple(name for name, strategy in ROUTERS.items() if field in strategy.fields)


def may_vary(path: str) -> bool:
    """Whether trials may differ in this field; others the job sets for all of them."""
    return path in _STILL_FREE or path.partition(".")[0] not in _FIXED_BY_JOB


def _is_selective(path: str, entry: Any, where: str) -> bool:
    below = entry.get("below") if isinstance(entry, Mapping) else None
    slots = slot_paths()
    if below is not None and (path not in slots or below != NUM_EXPERTS):
        raise InputError(
            f"{where}: below is for {' and '.join(slots)} only, as in below: {NUM_EXPERTS}"
        )
    return below is not None


def ordered(parameters: list[Parameter], where: str) -> tuple[Parameter, ...]:
    """Every field after those that it depends on."""
    known = {p.path: p for p in parameters}
    needs = {p.path: [c.path for c in p.when if c.path in known] for p in parameters}
    if NUM_EXPERTS in known:
        for path in known.keys() & set(slot_paths()):
            needs[path].append(NUM_EXPERTS)
    try:
        return tuple(known[path] for path in TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InputError(f"{where}: conditions go in a circle: {circle}") from None


def presets() -> dict[str, Path]:
    """The spaces that come with moetune, by name."""
    return {file.stem: file for file in sorted(_PRESETS.glob("*.yaml"))}


def read_definition(space: str) -> Any:
    """What a preset or a YAML file holds, whose paths begin at its folder; InputError if there is
    none of this name."""
    where = f"search space {space}"
    known = presets()
    file = known.get(space, Path(space))
    try:
        found = read_yaml(file.read_bytes(), where)
    except OSError:
        close = difflib.get_close_matches(space, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"presets are {', '.join(known)}"
        raise InputError(f"{where}: no such preset and no such file; {hint}") from None
    return with_sources(found, partial(placed, file.parent)) if isinstance(found, dict) else found
