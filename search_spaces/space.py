"""What a study may vary. A space is short YAML, checked whole when it is loaded:

adapter.num_experts: {choice: [1, 2, 4, 8]}
adapter.top_k: {int: [1, 4]}                # clipped to num_experts; only with routing: top_k
optimizer.lr: {log: [1e-4, 3e-3]}
loss.z_loss_weight: {float: [0, 0.01], when: {adapter.num_experts: {above: 2}}}
adapter.alpha: 16                           # fixed
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from search_spaces.parameters import (
    NUM_EXPERTS,
    ROUTING,
    Parameter,
    ordered,
    read_definition,
    read_parameter,
    slot_paths,
    slots_path,
)
from search_spaces.ranges import Range, size
from search_spaces.sources import TRAINING_ROWS
from workers.config.base import InputError, override
from workers.config.train import TrainSpec

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class SearchSpace:
    """A checked space over `train`; calling it with an Optuna trial suggests values."""

    where: str
    parameters: tuple[Parameter, ...]
    definition: Mapping[str, Any]
    train: TrainSpec

    @classmethod
    def resolve(cls, space: str | Mapping[str, Any] | None, train: TrainSpec) -> "SearchSpace":
        """From a preset's name, the path of a YAML file, or the space itself; None varies nothing.

        Raises InputError for an unknown field, a wrong type, an empty range, a combination of
        values that `train` forbids.
        """
        if space is None:
            return cls("search.space", (), {}, train)
        where = f"search space {space}" if isinstance(space, str) else "search.space"
        definition = read_definition(space) if isinstance(space, str) else space
        if not isinstance(definition, Mapping) or not definition:
            raise InputError(f"{where}: a space maps fields to ranges, and names at least one")
        parameters = [read_parameter(str(path), entry, where) for path, entry in definition.items()]
        resolved = cls(where, ordered(parameters, where), dict(definition), train)
        resolved._check()
        return resolved

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Values by dotted field, fixed ones included, for `workers.config.base.override`."""
        return self._assemble(lambda path, asked: asked.suggest(trial, path))

    __call__ = suggest

    def varied(self) -> list[str]:
        """Fields in which trials may differ."""
        paths = [p.path for p in self.parameters if len(p.range.ends()) > 1]
        clipped = map(slots_path, self._possible(ROUTING) if NUM_EXPERTS in paths else ())
        return list(dict.fromkeys([*paths, *(path for path in clipped if path)]))

    def samples(self) -> Iterator[TrainSpec]:
        """Runs that trials may become: every range alone, and the ends of every two together.

        Raises InputError at one that `train` forbids.
        """
        if not self.parameters:
            yield self.train
        for forced in self._probes():
            values = self._assemble(lambda p, asked, f=forced: f.get(p, asked.ends()[0]))  # type: ignore[misc]
            yield override(self.train, values, self.where)

    def value(self, path: str, values: Mapping[str, Any]) -> Any:
        """The suggested value of a field, or else the job's own."""
        if path in values:
            return values[path]
        place: Any = self._own
        for part in path.split("."):
            place = place[part]
        return place

    @cached_property
    def _own(self) -> dict[str, Any]:
        """The job's values, which each sample asks for many times."""
        return self.train.model_dump(mode="json")

    def _assemble(self, pick: Callable[[str, Range], Any]) -> dict[str, Any]:
        """Go through the fields in order; the one place where conditions are kept."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if all(c.holds(self.value(c.path, values)) for c in parameter.when):
                values[parameter.path] = self._one(parameter, values, pick)
        path = slots_path(self.value(ROUTING, values))
        if path and (NUM_EXPERTS in values or (path in values and self._is_selective)):
            most, slots = self._most_slots(values), self.value(path, values)
            values[path] = min(slots, most) if most and isinstance(slots, int) else slots
        return values

    def _one(
        self, parameter: Parameter, values: dict[str, Any], pick: Callable[[str, Range], Any]
    ) -> Any:
        asked, most = parameter.range, self._most_slots(values)
        if parameter.path in slot_paths() and most:
            if most == 1:
                return 1
            asked = asked.at_most(most)
        ends = asked.ends()
        return ends[0] if len(ends) == 1 else pick(parameter.path, asked)

    def _most_slots(self, values: Mapping[str, Any]) -> int | None:
        """The largest top_k that there are experts for, or that selects among them; None where
        their number is none."""
        experts = self.value(NUM_EXPERTS, values)
        counts = experts if isinstance(experts, list) else [experts]
        if not counts or not all(isinstance(one, int) for one in counts):
            return None
        fewest: int = min(counts)
        return max(1, fewest - self._is_selective)

    @property
    def _is_selective(self) -> bool:
        return any(parameter.is_selective for parameter in self.parameters)

    def _possible(self, path: str) -> list[Any]:
        """Values that a field may have: both ends, or every choice, or the job's own."""
        own = [value for p in self.parameters if p.path == path for value in p.range.ends()]
        return own or [self.value(path, {})]

    def _check(self) -> None:
        """Every field is there, and every sample is allowed."""
        if self.train.data.held_out and TRAINING_ROWS in self.varied():
            raise InputError(
                f"{self.where}: {TRAINING_ROWS}: cannot vary where data.validation is a share of "
                "it: each trial would be compared on rows of its own"
            )
        for parameter in self.parameters:
            self._check_paths(parameter)
        for _ in self.samples():
            pass

    def _probes(self) -> Iterator[dict[str, Any]]:
        for one in self.parameters:
            tried = one.range.candidates()
            ends = (end for end in one.range.ends() if end not in tried)
            yield from ({one.path: value} for value in (*tried, *ends))
        for a, b in itertools.combinations(self.parameters, 2):
            # The first end of each, which `samples` takes for what is not forced, is tried above.
            pairs = itertools.product(a.range.ends()[1:], b.range.ends()[1:])
            yield from ({a.path: x, b.path: y} for x, y in pairs)

    def _check_paths(self, parameter: Parameter) -> None:
        for path in (parameter.path, *(c.path for c in parameter.when)):
            try:
                value = self.value(path, {})
            except (KeyError, TypeError):
                # Not there: override says so, with what is allowed.
                override(self.train, {path: parameter.range.ends()[0]}, self.where)
                raise InputError(f"{self.where}: {path}: no such field") from None
            tests = {c.test for c in parameter.when if c.path == path}
            if tests & {"above", "below"} and size(value) is None:
                raise InputError(f"{self.where}: when {path}: {value!r} is no number to compare")
