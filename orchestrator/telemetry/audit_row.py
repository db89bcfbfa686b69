"""A record of the audit log as its files hold it."""

from typing import Any

import pyarrow as pa

from orchestrator.telemetry.request_record import RequestRecord

AuditRow = dict[str, Any]
PLACE = pa.struct(
    [
        ("layer", pa.string()),
        ("load", pa.list_(pa.int32())),
        ("entropy", pa.float32()),
        ("margin", pa.float32()),
    ]
)
SCHEMA = pa.schema(
    [
        ("at", pa.timestamp("us", "UTC")),
        ("request", pa.string()),
        ("name", pa.string()),
        ("version", pa.string()),
        ("role", pa.string()),
        ("caller", pa.string()),
        ("status", pa.int16()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("seconds", pa.float64()),
        ("first_token_seconds", pa.float64()),
        ("routed_tokens", pa.int32()),
        ("experts", pa.list_(PLACE)),
        ("prompt", pa.string()),
        ("answer", pa.string()),
    ]
)
"""Columns of the files. `experts` says for each routed place how many slots each expert got, and
the means over tokens of the router's entropy and of its margin."""


def row(record: RequestRecord, text: bool) -> AuditRow:
    """A record as plain values by column."""
    routing, tokens = record.routing, max(record.routing.tokens if record.routing else 0, 1)
    values = {name: getattr(record, name, None) for name in SCHEMA.names}
    return values | {
        "routed_tokens": routing and routing.tokens,
        "experts": routing
        and [
            {
                "layer": layer.layer,
                "load": layer.load,
                "entropy": layer.entropy / tokens,
                "margin": layer.margin / tokens,
            }
            for layer in routing.layers
        ],
        "prompt": _storable(record.prompt) if text else None,
        "answer": _storable(record.answer) if text else None,
    }


def _storable(text: str | None) -> str | None:
    """JSON may hold half a surrogate pair, which no file of text can."""
    return text and text.encode(errors="replace").decode()
