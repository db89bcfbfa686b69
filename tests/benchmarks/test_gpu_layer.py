from pathlib import Path

import pytest
import torch

from tests.benchmarks.smoke import ran

SMALL = ["--lengths", "64", "32", "--width", "64", "--feed-forward", "96", "--rounds", "1"]


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_its_ratios_or_says_why_not(tmp_path: Path) -> None:
    result, printed = ran("gpu_layer.py", SMALL, tmp_path)
    if not torch.cuda.is_available():
        assert result == {"skipped": "no CUDA GPU"}
        assert printed.startswith("skipped: no CUDA GPU")
        return
    assert result["fused_over_peft"].keys() == result["loop_over_fused"].keys() == {"64", "32"}
    assert result["error_bf16"] < 1e-2
    assert result["error_fp32"] < 1e-5
