"""The table of counts goes into text and comes back, whole or not at all."""

import pytest

from workers.adapter.routing_sample import CACHE_PAGE, LARGEST, MAX_NUMBERS, RoutingSample
from workers.config.base import InputError
from workers.engine.prefix_cache import PAGE

ROWS = [
    {"layers.10.mlp": [5, 0], "layers.2.mlp": [1, 2, 3]},
    {"layers.2.mlp": [0, 0, LARGEST + 9], "layers.10.mlp": [7, 300]},
]


def test_rows_come_back_by_place() -> None:
    sample = RoutingSample.of(ROWS)
    assert sample is not None
    read = RoutingSample.model_validate_json(sample.model_dump_json())
    assert (read.rows, read.experts) == (2, {"layers.10.mlp": 2, "layers.2.mlp": 3})
    assert list(read.table()) == [5, 0, 1, 2, 3, 7, 300, 0, 0, LARGEST]


def test_nothing_makes_no_sample() -> None:
    assert RoutingSample.of([]) is None
    assert RoutingSample.of([{}]) is None


def test_a_sample_stays_small() -> None:
    wide = {f"layers.{layer}.q_proj": [1] * 512 for layer in range(64)}
    sample = RoutingSample.of([wide] * 20)
    assert sample is not None
    assert sample.rows == MAX_NUMBERS // (64 * 512)


@pytest.mark.parametrize(
    "changes", [{"rows": 3}, {"rows": 1}, {"counts": "%%%"}, {"counts": "AAAA"}, {"counts": ""}]
)
def test_a_damaged_sample_is_refused(changes: dict[str, object]) -> None:
    sample = RoutingSample.of(ROWS)
    assert sample is not None
    with pytest.raises(InputError, match="routing_sample"):
        sample.model_copy(update=changes).table()


def test_pages_are_those_of_the_engine() -> None:
    assert CACHE_PAGE == PAGE
