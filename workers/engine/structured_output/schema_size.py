"""What a JSON schema's size tells, before anything is made of it."""

import json
from collections.abc import Iterable

from workers.engine.request import SchemaLimits


def check_size(schema: str, limits: SchemaLimits) -> None:
    """ValueError where it is too large, or no JSON."""
    if len(schema) > limits.max_bytes or len(schema.encode()) > limits.max_bytes:
        raise ValueError(f"the schema has more than {limits.max_bytes} bytes")
    try:
        level, depth, values = [json.loads(schema)], 0, 0
    except RecursionError:
        raise ValueError("the schema is too deep") from None
    while level:
        depth, values = depth + 1, values + len(level)
        if depth > limits.max_depth:
            raise ValueError(f"the schema is more than {limits.max_depth} values deep")
        if values > limits.max_values:
            raise ValueError(f"the schema has more than {limits.max_values} values")
        level = [inner for outer in level for inner in _inside(outer)]


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
