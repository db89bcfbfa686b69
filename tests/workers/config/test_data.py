"""What of a job's data does not go together is refused before anything is read."""

import pytest

from workers.config.base import InputError, validated
from workers.config.data import DataSpec


def test_a_stream_wants_validation_rows_of_their_own() -> None:
    fields = {"train": "a.jsonl", "validation": {"share": 0.1}, "streaming": True}
    with pytest.raises(InputError, match="streaming wants validation rows of their own"):
        validated(DataSpec, fields, "job")
    assert validated(DataSpec, fields | {"validation": "b.jsonl"}, "job").streaming
