import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "attacks" / "fairness.py"


@pytest.mark.usefixtures("benchmark")
def test_another_keys_request_waits_for_no_crowd() -> None:
    """By passes of the engine, not by time: its first comes next, and none is left out."""
    options = ["--clients=24", "--requests=12", "--cache-tokens=1024"]
    ran = subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True, check=True
    )
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["victim_p95_ratio"] > 0
    assert result["victim_passes_ratio"] <= 2
