"""So much in so long: what keys are allowed, as people write it."""

import re
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import AfterValidator

from workers.config.train import InputError

SECONDS = {"s": 1, "min": 60, "h": 3600, "day": 86400}
_NAMES = {"sec": "s", "second": "s", "minute": "min", "m": "min", "hour": "h", "d": "day"}
_FORM = re.compile(r"(?P<amount>[1-9][0-9]{0,14})\s*/\s*(?P<unit>[a-z]+)")
_SPAN = re.compile(r"(?P<amount>[1-9][0-9]{0,5})(?P<unit>s|min|h|d)")


@dataclass(frozen=True)
class Allowance:
    """An amount in each stretch of time."""

    amount: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `60/min`; the units are s, min, h and day."""
        found = _FORM.fullmatch(text.strip())
        unit = found and _NAMES.get(found["unit"], found["unit"])
        if not found or unit not in SECONDS:
            raise InputError(f"{text!r}: write AMOUNT/UNIT with s, min, h or day, as in 60/min")
        return cls(int(found["amount"]), unit)

    @property
    def seconds(self) -> int:
        """The stretch of time."""
        return SECONDS[self.unit]

    def __str__(self) -> str:
        return f"{self.amount}/{self.unit}"


AllowanceText = Annotated[str, AfterValidator(lambda text: str(Allowance.parse(text)))]
"""An allowance in a specification."""


def span_seconds(text: str) -> int:
    """Read a length of time such as `30d`, `12h`, `10min` or `60s`."""
    found = _SPAN.fullmatch(text.strip())
    if not found:
        raise InputError(f"{text!r}: write a length of time as 30d, 12h, 10min or 60s")
    unit = "day" if found["unit"] == "d" else found["unit"]
    return int(found["amount"]) * SECONDS[unit]
