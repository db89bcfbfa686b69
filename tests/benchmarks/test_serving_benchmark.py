import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("serving.py")
SMALL = (
    *("--shape", "64x96x1", "--vocabulary", "64", "--adapters", "2", "--experts", "2"),
    *("--rank", "2", "--prompt", "24", "--answer", "8", "--requests", "1", "--rounds", "1"),
    *("--clients", "2", "--at", "2", "--without", "moe-peft"),
)


@pytest.mark.usefixtures("benchmark")
def test_it_writes_its_section_and_ends_with_its_ratios(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    command = [sys.executable, str(SCRIPT), *SMALL, "--results", str(results), "--json", "-"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    result = json.loads(line)
    for name in ("one_adapter_over_base", "eight_adapters_over_base", "over_generate"):
        assert 0 < result[name] < 100
    assert result["over_moe_peft"] is None
    assert result["ttft_p95_s"] > 0
    assert result["sizes"]["adapters"] == 2
    assert set(result["by_clients"]) == {"2"}
    assert results.read_text().count("| 2 |") == 4
