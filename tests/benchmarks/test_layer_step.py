import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("layer_step.py")
SMALL = ["--experts", "2", "4", "--tokens", "16", "--width", "8", "--rank", "2", "--rounds", "1"]


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_its_ratios_as_json(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    command = [sys.executable, str(SCRIPT), *SMALL, "--json", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    line = printed.stdout.splitlines()[-1]
    result = json.loads(line)
    assert json.loads(path.read_text()) == result
    assert result["block_over_lora"].keys() == result["loop_over_block"].keys() == {"2", "4"}
    assert all(ratio > 0 for ratio in result["block_over_lora"].values())
    assert result["sizes"]["width"] == 8
    assert "block/LoRA" in printed.stdout
