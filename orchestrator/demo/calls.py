"""An answer of the demo's intent tasks: `HassTurnOn(name=desk lamp, area=kitchen)`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hassil.recognize import RecognizeResult

FIRST_SLOTS = ("name", "area", "floor", "domain", "device_class")
"""Slots that come first in an answer, in this order; the others follow by name."""


@dataclass(frozen=True)
class Call:
    """What the product does on a request: an intent and its slots."""

    intent: str
    slots: Mapping[str, str]

    def __str__(self) -> str:
        first = [name for name in FIRST_SLOTS if name in self.slots]
        names = first + sorted(self.slots.keys() - set(first))
        return f"{self.intent}({', '.join(f'{name}={self.slots[name]}' for name in names)})"

    @staticmethod
    def of(result: RecognizeResult) -> "Call":
        """The call that a recognised request stands for."""
        slots = {name: _plain(entity.value) for name, entity in result.entities.items()}
        return Call(result.intent.name, slots)

    @staticmethod
    def read(text: str) -> "Call | None":
        """Read an answer `Intent(slot=value, …)`; None if it is not written so."""
        match = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", text, re.DOTALL)
        if not match:
            return None
        pairs = [part.partition("=") for part in match[2].split(",") if part.strip()]
        if not all(equals for _, equals, _ in pairs):
            return None
        return Call(match[1], {name.strip(): value.strip() for name, _, value in pairs})

    def same_slots(self, other: "Call") -> bool:
        """Whether both have the same slots, up to case."""
        mine, theirs = (
            {name.casefold(): value.casefold() for name, value in call.slots.items()}
            for call in (self, other)
        )
        return mine == theirs


def _plain(value: Any) -> str:
    """A slot's value as text: 21.0 is 21."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
