import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.usefixtures("benchmark")
@pytest.mark.parametrize(
    ("script", "options", "keys"),
    [
        (
            "decode.py",
            ["--layers=2", "--width=16", "--feed-forward=24", "--rounds=1"],
            {"adapter_over_base", "several_over_base", "sizes"},
        ),
        (
            "crossover.py",
            ["--tokens=16", "--width=16", "--feed-forward=24", "--rounds=1", "--experts", "2", "4"],
            {"dense_up_to_ranks", "plain_up_to_pairs", "dense_over_grouped", "sizes"},
        ),
        (
            "product_order.py",
            ["--width-in=16", "--width-out=24", "--linears=2", "--rounds=1"],
            {"ours_over_torch", "sizes"},
        ),
    ],
)
def test_it_ends_with_its_ratios(script: str, options: list[str], keys: set[str]) -> None:
    ran = subprocess.run(
        [sys.executable, FOLDER / script, *options], capture_output=True, text=True, check=True
    )
    result = json.loads(ran.stdout.splitlines()[-1])
    assert keys <= result.keys()
    assert all(isinstance(result[key], dict | int) for key in keys)
