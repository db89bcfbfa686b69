import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "attacks" / "guard.py"


@pytest.mark.usefixtures("benchmark")
def test_no_attack_and_no_honest_change_moves_a_roll_out_and_every_fault_does(
    tmp_path: Path,
) -> None:
    """Its exit code says so too.."""
    command = [sys.executable, str(SCRIPT), "--every", "10", "--json", "-"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-4000:]
    [line] = ran.stdout.splitlines()
    result = json.loads(line)
    assert result["guard_events"] == result["honest_events"] + result["attack_events"] == 0
    assert result["caught"] == 1
    assert result["quiet_hours"] > 2
