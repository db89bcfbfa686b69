"""Files of JSON lines, read beside their writers and after crashes."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.run.conftest import KILLS, Kill
from workers.run.files import locked
from workers.run.json_lines import append_line, read_lines

APPENDS = """
import json, sys
from itertools import count
from pathlib import Path
from workers.run.json_lines import append_line
path, size = Path(sys.argv[1]), 400_000
for number in count():
    append_line(path, json.dumps({"number": number, "text": "x" * size}))
    if number == 0:
        print("writes", flush=True)
"""
CUT = """
import json, resource, signal, sys
from pathlib import Path
from workers.run.json_lines import append_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
append_line(Path(sys.argv[1]), json.dumps({"n": 2, "text": "x" * 100}))
"""
FINISHES = """
import json, sys
from pathlib import Path
from workers.run.json_lines import append_line
for number in range(200):
    text = "x" * (number * 97 % 20_000)
    append_line(Path(sys.argv[1]), json.dumps({"who": sys.argv[2], "number": number, "text": text}))
"""


def test_lines_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    lines = [{"n": 1}, {"text": "one\u2028line\x85still\nof JSON"}, {"n": 3}]
    for number, line in enumerate(lines):
        append_line(path, json.dumps(line, ensure_ascii=False), durable=number == 1)
    assert read_lines(path) == lines
    assert len(path.read_bytes().split(b"\n")) == len(lines) + 1


def test_a_torn_last_line_is_left_for_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2, "te')
    assert read_lines(path) == [{"n": 1}]
    with path.open("ab") as file:
        file.write(b'xt": ""}\n')
    assert read_lines(path) == [{"n": 1}, {"n": 2, "text": ""}]
    assert caplog.messages == []


def test_a_line_that_lacks_its_end_alone_is_whole(tmp_path: Path) -> None:
    """Before the next append, and after it: what was read once stays."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}')
    assert read_lines(path) == [{"n": 1}, {"n": 2}]
    append_line(path, '{"n": 3}')
    assert read_lines(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize("torn", [b'{"n": 2, "te', b'{"text": "\xc3', b"\0\0\0", b'{"n": [1, 2'])
def test_an_append_ends_a_torn_line_which_is_then_told_once(
    tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n' + torn)
    append_line(path, '{"n": 3}')
    for _ in range(3):
        with caplog.at_level(logging.WARNING):
            assert read_lines(path) == [{"n": 1}, {"n": 3}]
    [said] = caplog.messages
    assert f"{path}, line 2: is cut short" in said


def test_a_full_disk_spoils_no_other_line(tmp_path: Path, processes: None) -> None:
    """The limit on a file's size stands in for it: a write stops in the middle."""
    path = tmp_path / "lines.jsonl"
    append_line(path, '{"n": 1}')
    command = [sys.executable, "-c", CUT, str(path)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "File too large" in ended.stderr
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2, "t'
    append_line(path, '{"n": 3}')
    assert read_lines(path) == [{"n": 1}, {"n": 3}]


def test_a_killed_writer_spoils_no_other_line(tmp_path: Path, kill: Kill) -> None:
    path = tmp_path / "lines.jsonl"
    for seconds in KILLS:
        path.unlink(missing_ok=True)
        kill(APPENDS, path, seconds)
        append_line(path, '{"number": "last"}')
        *found, last = [line["number"] for line in read_lines(path)]
        assert (found, last) == ([*range(len(found))], "last")


def test_two_processes_append_at_once(tmp_path: Path, kill: Kill) -> None:
    """And a third is killed beside them."""
    path = tmp_path / "lines.jsonl"
    command = [sys.executable, "-c", FINISHES, str(path)]
    both = [subprocess.Popen([*command, who]) for who in "ab"]
    kill(APPENDS, path, 0.02)
    assert [one.wait(60) for one in both] == [0, 0]
    found = read_lines(path)
    for who in "ab":
        assert [line["number"] for line in found if line.get("who") == who] == [*range(200)]


def test_a_holder_of_the_lock_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"
    monkeypatch.setattr("workers.run.json_lines.PATIENCE_SECONDS", 0.05)
    with locked(path) as holds:
        assert holds
        append_line(path, '{"n": 1}')
    assert read_lines(path) == [{"n": 1}]


def test_a_filesystem_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no locks here")

    for name in ("lock_descriptor", "unlock_descriptor"):
        monkeypatch.setattr(f"workers.run.json_lines.{name}", refuse)
    append_line(tmp_path / "lines.jsonl", '{"n": 1}')
    assert read_lines(tmp_path / "lines.jsonl") == [{"n": 1}]
