import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.endurance
def test_a_minute_of_trouble_loses_nothing_and_mixes_nothing() -> None:
    """Its exit code says so too: `failed` and `mixed_versions` are 0."""
    ran = subprocess.run(
        [sys.executable, FOLDER / "soak.py", "--seconds", "60", "--json", "-"],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["requests"] > 100
    assert (result["failed"], result["mixed_versions"]) == (0, 0)
    assert min(result[kind] for kind in ("promotions", "kills", "canaries", "rollbacks")) > 0
