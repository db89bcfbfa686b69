from pathlib import Path

import pytest
import torch

from tests.benchmarks.smoke import ran


@pytest.mark.usefixtures("benchmark")
def test_every_stage_of_the_first_minutes_runs(tmp_path: Path) -> None:
    result, printed = ran("gpu_first.py", [], tmp_path)
    stages = ("resume", "kernels", "step", "decode", "pack")
    assert not any("error" in line for stage in stages for line in result[stage]), printed
    assert result["resume"] == [{"ok": True}]
    assert len(result["step"]) == 8
    assert all(line["tokens_per_s"] > 0 for line in result["step"])
    assert all(line["runs"] == 4 and line["joint_ms"] > 0 for line in result["pack"])
    assert {line["who"] for line in result["decode"]} == {
        "base, norms as written",
        "base",
        "1 of block",
        "1 of linear",
        "8 of block",
    }
    if not torch.cuda.is_available():
        assert "skipped" in result["kernels"][0]
