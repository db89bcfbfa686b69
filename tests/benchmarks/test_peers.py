import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("peers.py")
SMALL = (
    *("--shapes", "64x128x1", "--experts", "4", "--rounds", "1"),
    *("--rows", "2", "--length", "16", "--vocabulary", "64", "--rank", "2"),
)
OTHER_SECTIONS = "# Results\n\n## first.py\n\none\n\n## peers.py\n\nold\n\n## last.py\n\ntwo\n"


@pytest.mark.usefixtures("benchmark")
def test_the_benchmark_writes_its_section_and_ends_with_its_ratios(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text(OTHER_SECTIONS)
    command = [sys.executable, str(SCRIPT), *SMALL, "--without", "moe-peft"]
    command += ["--results", str(results), "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ratios = json.loads(done.stdout)
    assert ratios["moetune_over_peft"]["4"] > 0
    assert ratios["evaluation"]["moetune_over_peft"]["4"] > 0
    assert ratios["peak_memory_over_peft"]["4"] > 0
    assert ratios["moe_peft_over_moetune"] == {}
    router = 4 * 64
    trainable = ratios["trainable"]["4"]
    assert trainable["moetune"] == trainable["peft"] + router
    text = results.read_text()
    assert text.startswith("# Results\n\n## first.py\n\none\n\n## peers.py\n")
    assert text.endswith("\n\n## last.py\n\ntwo\n")
    assert "| 64x128x1 | 4 |" in text
    assert "old" not in text.splitlines()
