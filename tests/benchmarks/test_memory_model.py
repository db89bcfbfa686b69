from pathlib import Path

import pytest

from tests.benchmarks.smoke import ran


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_ratios_as_json(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Of a model so small that they say nothing."""
    options = ["--tokens", "64", "--rank", "4", "--num-experts", "2"]
    result, printed = ran("memory_model.py", [*options, "--model", str(tiny_model_dir)], tmp_path)
    found = result["estimated_over_measured"]
    assert len(found) == 20
    assert all(ratio > 0.3 for ratio in found.values())
    assert result["worst"] == max(abs(ratio - 1) for ratio in found.values())
    assert "block, checkpointing, bfloat16, long: " in printed
