from pathlib import Path

import pytest

from tests.benchmarks.smoke import ran

SMALL = ["--experts", "2", "4", "--tokens", "16", "--width", "8", "--rank", "2", "--rounds", "1"]


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_its_ratios_as_json(tmp_path: Path) -> None:
    result, printed = ran("layer_step.py", SMALL, tmp_path)
    assert result["block_over_lora"].keys() == result["loop_over_block"].keys() == {"2", "4"}
    assert all(ratio > 0 for ratio in result["block_over_lora"].values())
    assert result["sizes"]["width"] == 8
    assert "block/LoRA" in printed
