import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("gpu_layer.py")
SMALL = ["--lengths", "64", "32", "--width", "64", "--feed-forward", "96", "--rounds", "1"]


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_its_ratios_or_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    command = [sys.executable, str(SCRIPT), *SMALL, "--json", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    result = json.loads(printed.stdout.splitlines()[-1])
    assert json.loads(path.read_text()) == result
    if not torch.cuda.is_available():
        assert result == {"skipped": "no CUDA GPU"}
        assert printed.stdout.startswith("skipped: no CUDA GPU")
        return
    assert result["fused_over_peft"].keys() == result["loop_over_fused"].keys() == {"64", "32"}
    assert result["error_bf16"] < 1e-2
    assert result["error_fp32"] < 1e-5
