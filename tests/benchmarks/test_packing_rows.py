from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran

SMALL = {
    "rows": 4,
    "batch": 2,
    "long-rows": 4,
    "long-batch": 2,
    "long": 24,
    "layers": 1,
    "width": 64,
    "feed-forward": 64,
    "vocabulary": 64,
    "rounds": 1,
}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_speed_and_gradients_as_json(tmp_path: Path) -> None:
    result, printed = ran("packing_rows.py", options_of(SMALL), tmp_path)
    kinds = {"multitask", "long"}
    assert result["tokens_per_s_over_padded"].keys() == result["padding_share"].keys() == kinds
    assert all(share["packed"] == 0 for share in result["padding_share"].values())
    assert result["worst_gradient"] < 1e-5
    assert "multitask, packed:" in printed
