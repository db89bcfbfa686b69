import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("packing_rows.py")
SMALL = {
    "rows": 4,
    "batch": 2,
    "long-rows": 4,
    "long-batch": 2,
    "long": 24,
    "layers": 1,
    "width": 64,
    "feed-forward": 64,
    "vocabulary": 64,
    "rounds": 1,
}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_speed_and_gradients_as_json(tmp_path: Path) -> None:
    path = tmp_path / "packing.json"
    sizes = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(SCRIPT), *sizes, "--json", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    result = json.loads(printed.stdout.splitlines()[-1])
    assert json.loads(path.read_text()) == result
    kinds = {"multitask", "long"}
    assert result["tokens_per_s_over_padded"].keys() == result["padding_share"].keys() == kinds
    assert all(share["packed"] == 0 for share in result["padding_share"].values())
    assert result["worst_gradient"] < 1e-5
    assert "multitask, packed:" in printed.stdout
