import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("hostile.py")


@pytest.mark.usefixtures("benchmark")
def test_it_writes_its_section_and_ends_with_the_worst_of_its_pieces(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    command = [sys.executable, str(SCRIPT), "--only", "schemas", "prompts", "--seconds", "1"]
    done = subprocess.run(
        [*command, "--clients", "2", "--results", str(results), "--json", "-"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    result = json.loads(line)
    assert set(result["pieces"]) == {"schemas", "prompts"}
    for name in ("loop_stall_ms", "memory_mb", "victim_p95_ratio"):
        assert result[name] == max(piece[name] for piece in result["pieces"].values())
    assert result["guard_events"] is None
    for piece in result["pieces"].values():
        assert piece["attacks"] > 0
        assert piece["attacks_failed"] == 0
        assert piece["loop_stall_ms"] > 0
        assert piece["victim_p95_ratio"] > 0
    assert "| schemas |" in results.read_text()
