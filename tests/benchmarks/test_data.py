from pathlib import Path

import pytest

from tests.benchmarks.smoke import ran

SMALL = ["--rows=60", "--tokens=40", "--few=50", "--many=1000", "--steps=3", "--rounds=1"]


@pytest.mark.usefixtures("benchmark")
def test_it_ends_with_bytes_memory_and_speed_as_json(tmp_path: Path) -> None:
    result, printed = ran("data.py", SMALL, tmp_path)
    assert 2 < result["bytes_per_token"] < 6
    assert 4 < result["bytes_per_token_large_vocabulary"] < 6
    assert result["resident_mb"].keys() == result["first_batch_s"].keys() == {"50", "1k"}
    assert result["encode_tokens_per_cpu_s"] > 0
    assert result["over_today"] > 0
    assert result["streamed_tokens_per_cpu_s"] > 0
    assert result["passed_by_rows_per_cpu_s"] > 0
    assert "as before" in printed
