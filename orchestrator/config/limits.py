"""What requests may cost: so much in so long, as people write it, and the limits of each."""

import re
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from workers.config.base import InputError, PositiveInt, Spec
from workers.engine.request import SchemaLimits

SECONDS = {"s": 1, "min": 60, "h": 3600, "day": 86400}
_NAMES = {"sec": "s", "second": "s", "minute": "min", "m": "min", "hour": "h", "d": "day"}
_FORM = re.compile(r"(?P<amount>[1-9][0-9]{0,14})\s*/\s*(?P<unit>[a-z]+)")
_PATTERN = rf"[1-9][0-9]{{0,14}}\s*/\s*({'|'.join([*SECONDS, *_NAMES])})"
"""The same for those who cannot call Python."""
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


AllowanceText = Annotated[
    str,
    AfterValidator(lambda text: str(Allowance.parse(text))),
    Field(
        examples=["60/min", "1000000/day"], json_schema_extra={"pattern": f"^\\s*{_PATTERN}\\s*$"}
    ),
]
"""An allowance in a specification."""


def span_seconds(text: str) -> int:
    """Read a length of time such as `30d`, `12h`, `10min` or `60s`."""
    found = _SPAN.fullmatch(text.strip())
    if not found:
        raise InputError(f"{text!r}: write a length of time as 30d, 12h, 10min or 60s")
    unit = "day" if found["unit"] == "d" else found["unit"]
    return int(found["amount"]) * SECONDS[unit]


class LimitsSpec(Spec):
    """Limits of requests and of those who send them. Longest answer and queue are the engine's."""

    max_body_bytes: PositiveInt = 2**20
    """Largest body of a request. Ray Serve's proxy holds to what it was when Serve started."""
    max_prompt_tokens: PositiveInt | None = None
    """Longest prompt in tokens; None is what context and cache leave."""
    schemas: SchemaLimits = SchemaLimits()
    """JSON schemas that answers are to obey."""
    request_seconds: Annotated[float, Field(gt=0)] = 300
    """From a request's arrival to its end; what takes longer is cut off with 504."""
    rate: AllowanceText | None = None
    """Requests, as in 60/min, of each key that has no rate of its own, and of all that send none
    together; the operator's key has no limit."""
    quota: AllowanceText | None = None
    """Tokens, as in 1000000/day, of each key that has no quota of its own; likewise."""
