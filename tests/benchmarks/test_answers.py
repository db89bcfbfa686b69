from pathlib import Path

import pytest

from tests.benchmarks.smoke import options_of, ran

SMALL = {
    "prompts": 6,
    "rows": 3,
    "longest": 6,
    "layers": 1,
    "width": 64,
    "feed-forward": 64,
    "vocabulary": 64,
    "rounds": 1,
}


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_speed_and_equal_answers_as_json(tmp_path: Path) -> None:
    result, printed = ran("answers.py", options_of(SMALL), tmp_path)
    assert result["kinds"].keys() == {"mixed", "full"}
    for kind in result["kinds"].values():
        assert kind["equal"] == 6
        assert kind["speed_over_padded"] > 0
    assert result["kinds"]["full"]["mean_tokens"] == 6
    assert "mixed, continuous over padded:" in printed
