from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran

SMALL = {"positions": 12, "width": 8, "vocabulary": 64, "targets": 6, "rounds": 1}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_times_and_memory_as_json(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    options = [*options_of(SMALL), "--results", str(results)]
    result, printed = ran("output_head.py", options, tmp_path)
    for dtype in ("float32", "bfloat16"):
        assert result[dtype]["time"].keys() == {"pieces", "torch", "logits"}
        assert result[dtype]["peak"]["pieces"] == 1
        assert f"{dtype} pieces:" in printed
    assert result["float32"]["largest_difference_of_gradients"] < 1e-5
    assert "| bfloat16, torch |" in results.read_text()
