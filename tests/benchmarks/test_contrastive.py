import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("contrastive.py")
SMALL = {
    "rows": 2,
    "length": 16,
    "layers": 1,
    "width": 64,
    "feed-forward": 64,
    "vocabulary": 64,
    "anchors": 32,
    "rounds": 1,
}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_share_and_memory_as_json(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    sizes = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(SCRIPT), *sizes, "--json", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    result = json.loads(printed.stdout.splitlines()[-1])
    assert json.loads(path.read_text()) == result
    assert -1 < result["contrastive_share"] < 1
    assert result["peak_memory_added_mib"].keys() == {"32", "128"}
    assert result["sizes"]["anchors"] == 32
    assert "share of the step" in printed.stdout
