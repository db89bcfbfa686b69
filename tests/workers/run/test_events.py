"""The events of a run."""

from pathlib import Path

import pytest

from workers.run.events import EventLog, read_events


def test_events_are_added_by_anyone_and_read_in_order(tmp_path: Path) -> None:
    EventLog(tmp_path).note("started", "with\ntwo workers", step=0)
    EventLog(tmp_path).note("lost", "its process is gone", worker=1)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"at": 1.0, "kind": "hu\n')  # the disk was full
    EventLog(tmp_path).note("resumed", "with one", step=4)
    events = read_events(tmp_path)
    assert [(e.kind, e.message, e.step, e.worker) for e in events] == [
        ("started", "with two workers", 0, None),
        ("lost", "its process is gone", None, 1),
        ("resumed", "with one", 4, None),
    ]
    assert [e.at for e in events] == sorted(e.at for e in events)


def test_what_cannot_be_written_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    EventLog(tmp_path / "gone").note("failed", "no more room")
    said = capfd.readouterr().err
    assert "moetune: failed: no more room" in said
    assert "No such file" in said
    assert read_events(tmp_path / "gone") == []
