"""Attack with JSON schemas that take for ever to compile, or gigabytes, or are huge.

python tests/benchmarks/attacks/schemas.py [--seconds 10] [--json PATH|-]
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attacks.field import Sizes, attacked, main

KINDS = 40
"""Schemas of each kind; none is met a second time before so many others."""


def bodies() -> Iterator[tuple[str, bytes]]:
    """Paths and bodies."""
    for number in range(KINDS):
        for schema in _schemas(number):
            kind = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            asked = {"model": "base", "prompt": "hi", "max_tokens": 4, "response_format": kind}
            yield "/v1/completions", json.dumps(asked).encode()


def _schemas(number: int) -> Iterator[dict[str, Any]]:
    letters = [chr(97 + (number + n) % 26) for n in range(20)]
    yield {"type": "integer", "multipleOf": 99_999_999 - number}
    yield {"type": "string", "allOf": [{"pattern": f".*{one}.*.*{number}"} for one in letters]}
    yield {"type": "integer", "multipleOf": 40_009 + 2 * number}  # within the limits, just so
    yield {"enum": [f"value {number} {n}" for n in range(40_000)]}
    nested: dict[str, Any] = {"type": "integer", "minimum": number}
    for _ in range(90):
        nested = {"type": "array", "items": nested}
    yield nested


def measure(sizes: Sizes | None = None) -> dict[str, float]:
    """See `attacks.field.attacked`."""
    return attacked("schemas", sizes or Sizes())


if __name__ == "__main__":
    main(__doc__, measure)
