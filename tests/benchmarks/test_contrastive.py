from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran

SMALL = {
    "rows": 2,
    "length": 16,
    "layers": 1,
    "width": 64,
    "feed-forward": 64,
    "vocabulary": 64,
    "anchors": 32,
    "rounds": 1,
}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_share_and_memory_as_json(tmp_path: Path) -> None:
    result, printed = ran("contrastive.py", options_of(SMALL), tmp_path)
    assert -1 < result["contrastive_share"] < 1
    assert result["peak_memory_added_mib"].keys() == {"32", "128"}
    assert result["sizes"]["anchors"] == 32
    assert "share of the step" in printed
