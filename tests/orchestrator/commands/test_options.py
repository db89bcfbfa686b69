"""What commands print."""

import pytest

from orchestrator.commands.options import plain_answer, print_table


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
