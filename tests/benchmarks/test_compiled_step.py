from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran

SMALL = {
    "rows": 2,
    "longest": 12,
    "layers": 1,
    "width": 64,
    "feed-forward": 64,
    "vocabulary": 64,
    "num-experts": 2,
    "rank": 2,
    "rounds": 1,
}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_times_of_both_sides_as_json(tmp_path: Path) -> None:
    """Torch's own compiler, which takes half a minute, is asked in tests/distributed."""
    results = tmp_path / "RESULTS.md"
    options = [
        *options_of(SMALL),
        "--results",
        str(results),
        "--kinds",
        "linear",
        "--backend",
        "aot_eager",
    ]
    result, printed = ran("compiled_step.py", options, tmp_path)
    assert result["kinds"].keys() == {"linear"}
    for kind, found in result["kinds"].items():
        assert found["said"].startswith("decoder layers, in ")
        assert found["time"] > 0
        assert f"{kind}, compiled over as written:" in printed
    assert "| linear |" in results.read_text()
