from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran

SMALL = {
    "tasks": 2,
    "rows": 4,
    "length": 3,
    "steps": 2,
    "base-steps": 2,
    "held-out": 4,
    "seeds": 2,
    "layers": 1,
    "feed-forward": 32,
    "num-experts": 2,
    "rank": 1,
    "experts": "linear",
}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_every_seeds_losses_as_json(tmp_path: Path) -> None:
    result, printed = ran("router_rate.py", options_of(SMALL), tmp_path)
    losses = result["validation_loss"]
    assert list(losses) == ["0.0", "0.01", "0.1", "1.0"]
    assert all(len(each) == 2 and all(0 < one < 10 for one in each) for each in losses.values())
    assert "0.1:" in printed
