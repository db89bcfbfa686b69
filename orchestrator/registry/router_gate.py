"""The gate's part on routers: of one that has collapsed, good figures say little."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.registry.models import Version
from orchestrator.registry.registry import Registry
from workers.adapter.config import read_config
from workers.config.base import InputError, StorageError


class _Collapsed(NamedTuple):
    """A layer whose router has collapsed; the largest is the worst."""

    top: float
    """Share of the top_k busiest experts."""
    dead: float
    """Share of the experts that are unused."""
    layer: str
    how: str


@dataclass(frozen=True)
class RouterGate:
    """What a version's routers must be like.

    A router has collapsed in a layer where the top_k busiest experts together get more than
    `max_top_share` of the routed tokens (the choice has become constant), or where more than
    `max_dead` of the experts get less than `dead_share` of an even share.
    """

    max_top_share: float = 0.95
    dead_share: float = 0.05
    max_dead: float = 0.5

    def reasons(self, registry: Registry, version: Version) -> list[str]:
        """Why it is refused, in one clause however many layers there are; also where nothing was
        measured. Plain LoRA has no router."""
        try:
            config, _ = read_config(version.folder)
        except InputError as error:
            raise StorageError(str(error)) from None
        if config.num_experts == 1:
            return []
        loads = registry.manifest(version).expert_load
        if not loads:
            return ["no expert load was recorded, so that the router cannot be checked"]
        top_k = config.fewest_slots
        if all(len(load) <= top_k for load in loads.values()):
            return [f"its router sends every token to all {top_k} experts, so it selects nothing"]
        return self._collapse(loads, top_k)

    def _collapse(self, loads: Mapping[str, Sequence[float]], top_k: int) -> list[str]:
        looked = (self._layer(layer, load, top_k) for layer, load in loads.items())
        found = [one for one in looked if one]
        if not found:
            return []
        worst = max(found)
        many = f"{len(found)} of {len(loads)} layers, worst in " if len(found) > 1 else ""
        return [f"its router has collapsed in {many}{worst.layer}: {worst.how}"]

    def _layer(self, layer: str, load: Sequence[float], top_k: int) -> _Collapsed | None:
        total, experts = sum(load), len(load)
        if total <= 0:
            return _Collapsed(1.0, 1.0, layer, f"no token reaches any of {experts} experts")
        shares = sorted((share / total for share in load), reverse=True)
        top = sum(shares[:top_k])
        dead = sum(share < self.dead_share / experts for share in shares)
        how = []
        if experts > top_k and top > self.max_top_share:
            how.append(f"{top_k} of {experts} experts get {top:.1%}")
        if dead > self.max_dead * experts:
            how.append(f"{dead} of {experts} are unused")
        return _Collapsed(top, dead / experts, layer, ", ".join(how)) if how else None
