"""The pages that the code itself says are those that it says now, on any terminal."""

import pytest

from docs.generate.__main__ import FOLDER, PAGES, text


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_make_docs_writes(name: str) -> None:
    assert (FOLDER / name).read_text() == text(name), "run `make docs`, and commit what it writes"


@pytest.mark.parametrize("name", PAGES)
def test_no_terminal_and_no_variable_changes_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = text(name)
    for columns in ("40", "80", "100", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TERMINAL_WIDTH", columns)
        monkeypatch.setenv("MOETUNE_STORAGE", "/elsewhere")
        monkeypatch.setenv("MOETUNE_ADDRESS", "10.0.0.1:6379")
        assert text(name) == known


def test_every_field_and_every_command_has_a_place() -> None:
    jobs, cli = text("jobs.md"), text("cli.md")
    for said in ("## train.adapter", "`num_experts`", "## serve.limits.schemas", "`check_every_s`"):
        assert said in jobs
    for said in ("## moetune keys create", "--accept-new-data", "env var: MOETUNE_STORAGE"):
        assert said in cli
