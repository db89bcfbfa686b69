from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_its_ratio_as_json(tmp_path: Path) -> None:
    options = options_of({"pack": 3, "steps": 2, "words": 4, "threads": 1})
    result, printed = ran("packing_step.py", options, tmp_path)
    assert result["step_speed_ratio"] > 0
    assert result["peak_bytes"]["together"] > result["peak_bytes"]["alone"] > 0
    assert result["base_bytes"] > 10**5
    assert "of single steps' speed" in printed
