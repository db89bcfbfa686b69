from pathlib import Path

import pytest

from tests.benchmarks.smoke import ran


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_both_ways_of_one_study_as_json(tmp_path: Path) -> None:
    options = [
        "--models",
        "tiny",
        "--trials",
        "2",
        "--packs",
        "2",
        "--steps",
        "2",
        "--batch",
        "2",
        "--words",
        "4",
    ]
    result, printed = ran("packing.py", options, tmp_path)
    for ratio in ("makespan_ratio", "without_start_up"):
        assert result[ratio]["tiny"]["2"] > 0
    assert result["step_speed_ratio"]["tiny"] > 0
    assert result["worst_difference"] < 1e-5
    assert "tiny: pack 2" in printed
