"""Reads the parameters of a space: which field, what it may be, and after which others."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from search_spaces.ranges import Condition, Range, read_conditions, read_range
from workers.config.base import InputError
from workers.config.yaml_text import read_yaml

NUM_EXPERTS, ROUTING, TOP_K = "adapter.num_experts", "adapter.routing", "adapter.top_k"
_PRESETS = Path(__file__).parent / "presets"
# Without a router, nothing that shapes routing has an effect.
_ROUTED_ONLY = frozenset(
    {
        ROUTING,
        "adapter.top_p",
        "adapter.expert_capacity",
        "adapter.gates",
        "adapter.gate_scale",
        "adapter.router_temperature",
        "adapter.router_jitter",
        "adapter.router_init_std",
        "adapter.expert_dropout",
        "adapter.shared_a",
    }
)
_LOSSES = "loss."  # All of them are of routed layers.
# Each of these is read with one strategy only.
_READ_WITH = {TOP_K: "top_k", "adapter.top_p": "top_p", "adapter.expert_capacity": "switch"}
# Trials that differ here could not be compared, or would not fit the places reserved for them.
_FIXED_BY_JOB = ("model", "evaluation", "parallel", "data")
_STILL_FREE = ("data.train", "data.max_rows")


@dataclass(frozen=True)
class Parameter:
    """A field of the training specification, what it may be, and when it is asked for."""

    path: str
    range: Range
    when: tuple[Condition, ...]
    is_selective: bool = False
    """Of top_k: below the number of experts where there are several."""


def read_parameter(path: str, entry: Any, where: str) -> Parameter:
    """The parameter that an entry of a space states; InputError if it cannot vary or be read."""
    if not may_vary(path):
        raise InputError(
            f"{where}: {path}: set by the job, the same for every trial; a space may vary "
            f"adapter, loss, optimizer, seed, {', '.join(_STILL_FREE)}"
        )
    when = read_conditions(entry, f"{where}: {path}")
    if path in _ROUTED_ONLY or path.startswith(_LOSSES):
        when = (Condition(NUM_EXPERTS, "above", 1), *when)
    if path in _READ_WITH:
        when = (Condition(ROUTING, "in", (_READ_WITH[path],)), *when)
    is_selective = _is_selective(path, entry, f"{where}: {path}")
    return Parameter(path, read_range(entry, f"{where}: {path}"), when, is_selective)


def may_vary(path: str) -> bool:
    """Whether trials may differ in this field; others the job sets for all of them."""
    return path in _STILL_FREE or path.partition(".")[0] not in _FIXED_BY_JOB


def _is_selective(path: str, entry: Any, where: str) -> bool:
    below = entry.get("below") if isinstance(entry, Mapping) else None
    if below is not None and (path, below) != (TOP_K, NUM_EXPERTS):
        raise InputError(f"{where}: below is for {TOP_K} only, as in below: {NUM_EXPERTS}")
    return below is not None


def ordered(parameters: list[Parameter], where: str) -> tuple[Parameter, ...]:
    """Every field after those that it depends on."""
    known = {p.path: p for p in parameters}
    needs = {p.path: [c.path for c in p.when if c.path in known] for p in parameters}
    if TOP_K in known and NUM_EXPERTS in known:
        needs[TOP_K].append(NUM_EXPERTS)
    try:
        return tuple(known[path] for path in TopologicalSorter(needs).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InputError(f"{where}: conditions go in a circle: {circle}") from None


def presets() -> dict[str, Path]:
    """The spaces that come with moetune, by name."""
    return {file.stem: file for file in sorted(_PRESETS.glob("*.yaml"))}


def read_definition(space: str) -> Any:
    """What a preset or a YAML file holds; InputError if there is none of this name."""
    where = f"search space {space}"
    known = presets()
    file = known.get(space, Path(space))
    try:
        return read_yaml(file.read_bytes(), where)
    except OSError:
        close = difflib.get_close_matches(space, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"presets are {', '.join(known)}"
        raise InputError(f"{where}: no such preset and no such file; {hint}") from None
