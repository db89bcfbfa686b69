import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("expert_parallel.py")
SMALL = ("--width", "32", "--feed-forward", "48", "--experts", "8", "--rank", "4", "--rounds", "1")


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_its_ratios(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *SMALL, "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert max(line["max_error"].values()) < 1e-12
    assert line["expert_memory_ratio"] == {"2": 0.5, "4": 0.25}
    assert line["bytes_over_predicted"].keys() == {
        f"{size} {way}" for size in (2, 4) for way in ("tokens", "weights")
    }
    assert line["bytes_over_predicted"]["4 weights"] == pytest.approx(1.0)
    assert len(line["auto"]) == 6
    for setting in line["auto"].values():
        # A ratio near 1 may be what else the machine does; twice the time is not.
        assert setting["picked"] == setting["faster"] or setting["slower_over_faster"] < 2
    # Random tokens scatter: the prediction is of a router without favourites.
    assert line["bytes_over_predicted"]["4 tokens"] == pytest.approx(1.0, abs=0.2)
