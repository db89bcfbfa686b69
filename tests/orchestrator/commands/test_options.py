"""What commands print."""

import pytest

from orchestrator.commands.options import print_table


def test_a_table_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("who", "[why]"), [("a", "[/b] worse [red]"), ("b", ":smile:")], title="[x] study")
    said = capsys.readouterr().out
    for text in ("[why]", "[/b] worse [red]", ":smile:", "[x] study"):
        assert text in said
