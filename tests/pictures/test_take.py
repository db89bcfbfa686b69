"""The pictures' script: what it finds, what it shows, and what it says without a browser."""

from pathlib import Path

import pytest

from tests.orchestrator.browser import browser
from tests.pictures import take, terminal
from tests.pictures.demo_run import SUMMARY, newest

PNG = b"\x89PNG"


def leave_run(storage: Path, name: str, ended: bool = True) -> Path:
    folder = storage / name
    (folder / "studies" / "s" / "trials" / "T000" / "checkpoints").mkdir(parents=True)
    (folder / "moetune.db").write_text("rows")
    if ended:
        (folder / SUMMARY).write_text('{"seconds": {}}')
    return folder


def test_the_latest_run_that_has_ended_is_taken(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    leave_run(tmp_path, "run-20260101-000000")
    wanted = leave_run(tmp_path, "run-20260102-000000")
    leave_run(tmp_path, "run-20260103-000000", ended=False)
    found = newest(tmp_path)
    assert found is not None
    assert found.folder == wanted
    assert found.summary == {"seconds": {}}


def test_a_copy_is_shown_without_what_no_picture_needs(tmp_path: Path) -> None:
    leave_run(tmp_path, "run-20260101-000000")
    found = newest(tmp_path)
    assert found is not None
    copy = found.copied(tmp_path / "copy")
    assert (copy.folder / "moetune.db").read_text() == "rows"
    assert not list(copy.folder.rglob("checkpoints"))


def test_a_command_says_what_it_says_as_text() -> None:
    shown = terminal.page([("moetune <b>", "a < b & c")])
    assert "<b>$ moetune &lt;b&gt;</b>\na &lt; b &amp; c" in shown


@pytest.mark.usefixtures("processes")
def test_without_a_browser_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(take, "CHROMIUM", None)
    assert take.main(["--demo", str(tmp_path), "--to", str(tmp_path / "to")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "chromium" in said
    assert not (tmp_path / "to").exists()


@pytest.mark.usefixtures("chromium")
def test_a_terminal_becomes_a_picture(tmp_path: Path) -> None:
    page = tmp_path / "terminal.html"
    page.write_text(terminal.page([("moetune --version", "moetune 0.1.0")]))
    with browser(tmp_path / "browser") as tab:
        tab.open(page.as_uri())
        assert "moetune 0.1.0" in tab.text("pre")
        take._shot(tab, tmp_path / "terminal.png", 200)
    assert (tmp_path / "terminal.png").read_bytes().startswith(PNG)
