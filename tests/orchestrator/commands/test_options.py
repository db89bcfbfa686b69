"""What commands print."""

import os
import pty
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from orchestrator.output import plain_answer, print_table

COLUMNS = ("trial", "state", "validation/loss", "contrastive_weight", "version", "at", "why")
ROWS = [
    (0, "finished", 0.731234, 0.01, "3f9a1c2b7d10", datetime(2026, 5, 1, 2, 3, 4, 5, UTC), None),
    (1, "failed", None, 0.0, None, None, "[/b] its router\x1b[31m\ncollapsed " + "on and on " * 9),
]


def test_a_table_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("who", "[why]"), [("a", "[/b] worse [red]"), ("b", ":smile:")], title="[x] study")
    said = capsys.readouterr().out
    for text in ("[why]", "[/b] worse [red]", ":smile:", "[x] study"):
        assert text in said


def test_a_table_shows_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "fine\n9  now  promote  \x1b[2J\x1b]0;mine\x07\r\u202ekcab \ud800"
    print_table(("reason\x1b[1m",), [(reason,)], title="a\x9b2J")
    said = capsys.readouterr().out
    assert said.isprintable() or all(line.isprintable() for line in said.split("\n"))
    assert said.count("\n") == 3
    for text in ("fine\\n9  now", "\\x1b[2J", "\\x07\\r", "\\u202ekcab", "\\ud800", "a\\x9b2J"):
        assert text in said


def test_an_answer_keeps_its_lines_and_commands_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "two\nlines\tand \x1b[2J"
    assert plain_answer(answer) == answer  # a pipe gets it as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert plain_answer(answer) == "two\nlines\tand \\x1b[2J"


def test_a_piped_table_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS, "study x")
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title == "study x"
    assert head.split() == list(COLUMNS)
    assert first.split() == [
        *("0", "finished", "0.7312", "0.01", "3f9a1c2b7d10", "2026-05-01", "02:03:04", "UTC", "-")
    ]
    assert "[/b] its router\\x1b[31m\\ncollapsed on and on" in second
    assert not any(line.endswith(" ") for line in (head, first, second))


@pytest.mark.usefixtures("processes")
def test_a_table_fits_a_terminal_of_80_columns() -> None:
    code = "from tests.orchestrator.commands.test_options import *; print_table(COLUMNS, ROWS)"
    main, side = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", code], stdout=side, env=environment, check=True)
    os.close(side)
    with os.fdopen(main, "rb", buffering=0) as screen:
        lines = screen.read(4096).decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("trial 0 · state finished · validation/loss 0.7312 · ")
    assert "version 3f9a1c2b7d10" in " ".join(line.strip() for line in lines)
