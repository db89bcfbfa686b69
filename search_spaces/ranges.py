"""The parts of a search space: what a field may be, and when it is asked for at all."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from workers.config.base import InputError
from workers.config.credentials import shown

if TYPE_CHECKING:
    import optuna

# YAML 1.1 reads 1e-4 (no point) as text; people write it, so it is read as a number here.
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_KINDS = "choice, int, float, log"
BESIDE = ("when", "step", "below")
"""Keys of an entry that are no range."""


@dataclass(frozen=True)
class CategoricalRange:
    """One of several values; one alone is fixed and never asked for."""

    values: tuple[Any, ...]

    def candidates(self) -> tuple[Any, ...]:
        """Values that the check tries."""
        return self.values

    def ends(self) -> tuple[Any, ...]:
        """Values that the check tries together with those of other fields."""
        return self.values

    def at_most(self, _limit: int) -> "CategoricalRange":
        """Itself: Optuna wants equal choices in every trial, so the answer is clipped instead."""
        return self

    def suggest(self, trial: "optuna.Trial", path: str) -> Any:
        """Ask Optuna. Lists go by their JSON text, for its storage keeps scalars only."""
        labels = [json.dumps(v) if isinstance(v, list | tuple) else v for v in self.values]
        return self.values[labels.index(trial.suggest_categorical(path, labels))]


@dataclass(frozen=True)
class Interval:
    """Numbers from low to high, both included."""

    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: int = 1

    def candidates(self) -> tuple[float, ...]:
        """Every integer of a short range; otherwise the ends and a crooked number between."""
        if self.integer and self.high - self.low <= 64 * self.step:
            return tuple(range(int(self.low), int(self.high) + 1, self.step))
        between = self.low + (self.high - self.low) * 0.3819
        return (self.low, int(between) if self.integer else between, self.high)

    def ends(self) -> tuple[float, ...]:
        """Both ends."""
        return (self.low, self.high) if self.high > self.low else (self.low,)

    def at_most(self, limit: int) -> "Interval":
        """The part that is not above `limit`; `limit` alone where the whole range is above."""
        return Interval(
            min(self.low, limit), min(self.high, limit), self.integer, self.log, self.step
        )

    def suggest(self, trial: "optuna.Trial", path: str) -> float:
        """Ask Optuna."""
        if self.integer:
            return int(trial.suggest_int(path, int(self.low), int(self.high), step=self.step))
        return float(trial.suggest_float(path, self.low, self.high, log=self.log))


Range: TypeAlias = CategoricalRange | Interval


@dataclass(frozen=True)
class Condition:
    """A field is asked for only where another one is above, below or among something."""

    path: str
    test: str
    operand: Any

    def holds(self, value: Any) -> bool:
        """Whether `value`, that of the field at `path`, meets the condition."""
        if self.test == "in":
            return value in self.operand
        number = size(value)
        if number is None:
            return False
        return bool(number > self.operand if self.test == "above" else number < self.operand)


def size(value: Any) -> float | None:
    """What a value is compared as: of several numbers (experts by layer) the largest one; None for
    what is no number."""
    numbers = value if isinstance(value, list | tuple) and value else [value]
    return max(numbers) if all(isinstance(one, int | float) for one in numbers) else None


def read_range(entry: Any, where: str) -> Range:
    """The range that an entry states: {choice | int | float | log: …}, or a bare, fixed value. What
    may stand beside it is `when`, and of an integer `step` and `below`."""
    if not isinstance(entry, Mapping):
        return CategoricalRange((_number(entry),))
    kinds = [key for key in entry if key not in BESIDE]
    if len(kinds) != 1 or kinds[0] not in _KINDS.split(", "):
        raise InputError(
            f"{where}: a range is one of {_KINDS}, not {', '.join(map(str, kinds)) or 'nothing'}"
        )
    kind, value = kinds[0], entry[kinds[0]]
    if "step" in entry and kind != "int":
        raise InputError(f"{where}: step goes with int only")
    if kind == "choice":
        return _choice(value, where)
    return _interval(kind, value, entry.get("step", 1), where)


def read_conditions(entry: Any, where: str) -> tuple[Condition, ...]:
    """The conditions under `when`: {FIELD: value} or {FIELD: {above | below | in: …}}."""
    when = entry.get("when", {}) if isinstance(entry, Mapping) else {}
    if not isinstance(when, Mapping):
        raise InputError(
            f"{where}: when is a mapping such as {{adapter.num_experts: {{above: 1}}}}"
        )
    return tuple(
        _condition(str(path), test, f"{where}: when {path}") for path, test in when.items()
    )


def _condition(path: str, test: Any, where: str) -> Condition:
    if not isinstance(test, Mapping):
        return Condition(path, "in", (test,))
    name, operand = next(iter(test.items()), (None, None))
    if len(test) != 1 or name not in ("above", "below", "in"):
        raise InputError(f"{where}: a condition is a value, or one of above, below, in")
    operand = _number(operand)
    if isinstance(operand, list if name == "in" else int | float):
        return Condition(path, str(name), operand)
    kind = "a list" if name == "in" else "a number"
    raise InputError(f"{where}: {name} wants {kind}, not {shown(operand)}")


def _choice(values: Any, where: str) -> CategoricalRange:
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}: choice wants a list of values, not {shown(values)}")
    return CategoricalRange(tuple(map(_number, values)))


def _interval(kind: str, value: Any, step: Any, where: str) -> Interval:
    wanted: Any = int if kind == "int" else int | float
    ends = [_number(end) for end in value] if isinstance(value, list) else []
    if len(ends) != 2 or not all(isinstance(e, wanted) and not isinstance(e, bool) for e in ends):
        raise InputError(f"{where}: {kind} wants [LOW, HIGH], two numbers, not {shown(value)}")
    low, high = ends
    if not low <= high:
        raise InputError(f"{where}: the range is empty: {low} is above {high}")
    if kind == "log" and low <= 0:
        raise InputError(f"{where}: a log range begins above 0, not at {low}")
    if not isinstance(step, int) or not (0 < step <= max(1, high - low)):
        raise InputError(
            f"{where}: step is a whole number from 1 to {high - low}, not {shown(step)}"
        )
    return Interval(low, high, kind == "int", kind == "log", step)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
