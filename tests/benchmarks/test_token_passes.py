from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran

SMALL = {
    "rows": 12,
    "batch": 6,
    "longest": 32,
    "one-long": 6,
    "tokens": 64,
    "layers": 1,
    "width": 64,
    "feed-forward": 64,
    "vocabulary": 64,
}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_passes_and_gradients_as_json(tmp_path: Path) -> None:
    result, printed = ran("token_passes.py", options_of(SMALL), tmp_path)
    by_rows, by_tokens = (result["epochs"][side] for side in ("rows", "tokens"))
    assert by_tokens["passes"] < by_rows["passes"] == 6
    assert by_tokens["tokens_of_a_pass"] > by_rows["tokens_of_a_pass"]
    assert result["worst_gradient"] < 1e-5
    assert result["tokens_per_s_over_rows"] > 0
    assert "tokens: " in printed
