from pathlib import Path

import pytest

from tests.benchmarks.smoke import ran


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_ends_with_the_parts_of_a_start_as_json(tmp_path: Path) -> None:
    options = ["--trials", "2", "--packs", "2", "--batch", "2", "--words", "4"]
    result, printed = ran("start_up.py", options, tmp_path)
    assert result["seconds"].keys() == {"packs of 2"}
    for parts in result["seconds"].values():
        assert all(seconds > 0 for seconds in parts.values()), parts
    assert "| total |" in printed
