from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran
from workers.config.train import TrainSpec

SMALL = {"steps": 2, "seeds": 2, "num-experts": 2, "rank": 2, "threads": 1}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_every_seeds_losses_as_json(
    make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    file = tmp_path / "train.json"
    file.write_text(make_spec().model_dump_json())
    result, printed = ran("router_rate_run.py", [str(file), *options_of(SMALL)], tmp_path)
    losses = result["validation_loss"]
    assert list(losses) == ["0.0", "0.1", "1.0"]
    assert all(len(each) == 2 and all(0 < one < 10 for one in each) for each in losses.values())
    assert "0.1:" in printed
