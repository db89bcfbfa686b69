"""The audit log: whole files for this user alone, nothing blocks, nothing is lost unseen."""

import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.config.audit import AuditSpec
from orchestrator.telemetry.audit_log import AuditLog
from orchestrator.telemetry.request_record import RequestRecord, steady
from workers.engine.routing.types import LayerRouting, RequestRouting

ROOT = Path(__file__).resolve().parents[3]
PLACE = LayerRouting("layers.0.mlp", (3, 5), (1.5, 2.5), 2.0, 1.0)
Make = Callable[..., AuditLog]


def answered(**fields: Any) -> RequestRecord:
    values = {
        "at": datetime(2026, 11, 22, 8, 0, 0, 123456, UTC),
        "came": steady(),
        "request": "chatcmpl-1",
        "name": "home",
        "version": "3f9a1b2c3d4e",
        "caller": "key-1",
        "status": 200,
        "error": None,
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "seconds": 0.5,
        "first_token_seconds": 0.1,
        "routing": RequestRouting(4, (PLACE,)),
        "prompt": "is the door locked?",
        "answer": "yes",
    }
    return RequestRecord(**{**values, **fields})


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(rotate_rows=…): a log into `audit`, closed at the end."""
    logs = []

    def begin(**fields: Any) -> AuditLog:
        logs.append(AuditLog(AuditSpec(**fields), tmp_path / "audit"))
        return logs[-1]

    yield begin
    for log in logs:
        log.close()


def records(folder: Path) -> list[dict[str, Any]]:
    """What a reader finds in the files that it sees."""
    files = sorted((folder / "audit").glob("*.parquet"))
    return [record for file in files for record in pq.read_table(file).to_pylist()]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)


def test_a_record_says_who_asked_what_version_and_which_experts(make: Make, tmp_path: Path) -> None:
    log = make()
    log(answered())
    log(answered(name=None, version="base", status=429, error="queue_full", routing=None))
    log.close()
    first, second = records(tmp_path)
    assert first["at"] == answered().at
    assert (first["name"], first["version"], first["role"]) == ("home", "3f9a1b2c3d4e", "served")
    assert (first["caller"], first["status"], first["seconds"]) == ("key-1", 200, 0.5)
    assert first["routed_tokens"] == 4
    assert first["experts"] == [
        {"layer": "layers.0.mlp", "load": [3, 5], "entropy": 0.5, "margin": 0.25}
    ]
    assert (second["status"], second["error"], second["experts"]) == (429, "queue_full", None)


def test_text_is_kept_only_where_it_is_switched_on(make: Make, tmp_path: Path) -> None:
    log = make()
    log(answered())
    log.close()
    assert [(one["prompt"], one["answer"]) for one in records(tmp_path)] == [(None, None)]
    written = next((tmp_path / "audit").glob("*.parquet")).read_bytes()
    assert b"door" not in written

    log = make(text=True)
    log(answered(answer="half a pair: \ud83d"))
    log.close()
    assert ("is the door locked?", "half a pair: ?") in [
        (one["prompt"], one["answer"]) for one in records(tmp_path)
    ]


def test_files_are_for_this_user_alone(make: Make, tmp_path: Path) -> None:
    log = make()
    log(answered())
    log.close()
    [file] = (tmp_path / "audit").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_file_is_closed_when_it_has_its_rows(make: Make, tmp_path: Path) -> None:
    log = make(rotate_rows=3)
    for _ in range(3):
        log(answered())
    wait_until(lambda: len(records(tmp_path)) == 3)
    log(answered())
    log.close()
    assert len(records(tmp_path)) == 4
    assert len(list((tmp_path / "audit").iterdir())) == 2, "and nothing half written is left"


def test_a_file_is_closed_in_time_though_nothing_follows(make: Make, tmp_path: Path) -> None:
    log = make(rotate_minutes=0.2 / 60)
    log(answered())
    wait_until(lambda: len(records(tmp_path)) == 1)


def test_readers_never_meet_half_a_file(make: Make, tmp_path: Path) -> None:
    log, done, seen = make(rotate_rows=20), threading.Event(), [0]

    def read() -> None:
        while not done.is_set():
            seen.append(len(records(tmp_path)))  # raises where a file is not whole

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(400):
        log(answered(request=f"chatcmpl-{number}"))
        time.sleep(0.0005)
    log.close()
    done.set()
    reader.join(timeout=20)
    assert seen == sorted(seen)
    found = records(tmp_path)
    assert [one["request"] for one in found] == [f"chatcmpl-{n}" for n in range(400)]
    assert log.dropped == 0


def test_what_the_disk_cannot_follow_is_dropped_and_counted(make: Make, tmp_path: Path) -> None:
    log = make(queue=5)
    for _ in range(5000):
        log(answered())
    log.close()
    kept = len(records(tmp_path))
    assert 5 <= kept < 5000
    assert kept + log.dropped == 5000


def test_a_disk_that_refuses_is_survived(make: Make, tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file where the folder should be")
    log = make()
    log(answered())
    wait_until(lambda: log.dropped == 1)
    (tmp_path / "audit").unlink()
    log(answered())
    log.close()
    assert len(records(tmp_path)) == 1


def test_all_of_a_file_that_cannot_be_closed_is_counted_as_lost(make: Make, tmp_path: Path) -> None:
    log = make()
    log(answered())
    wait_until(lambda: any(file.stat().st_size for file in (tmp_path / "audit").glob(".*")))
    shutil.rmtree(tmp_path / "audit")
    log(answered())
    log.close()
    assert log.dropped == 2


GATEWAY = """
import sys, time
from pathlib import Path
from orchestrator.telemetry.audit_log import AuditLog
from orchestrator.config.audit import AuditSpec
from tests.orchestrator.telemetry.test_audit_log import answered
log = AuditLog(AuditSpec(), sys.argv[1])
for number in range(7):
    log(answered(request=f"chatcmpl-{number}"))
time.sleep(600)
"""


def hidden(folder: Path) -> list[Path]:
    return list((folder / "audit").glob(".*"))


@pytest.mark.usefixtures("processes")
def test_a_killed_gateways_records_are_found_by_the_next(make: Make, tmp_path: Path) -> None:
    gateway = subprocess.Popen([sys.executable, "-c", GATEWAY, tmp_path / "audit"], cwd=ROOT)
    try:
        wait_until(lambda: any(file.stat().st_size for file in hidden(tmp_path)))
        make().close()
        assert records(tmp_path) == []  # it lives: they are its own
    finally:
        gateway.kill()
        gateway.wait()
    [left] = hidden(tmp_path)
    with left.open("ab") as cut_off:  # the beginning of a batch
        cut_off.write(b"\xff\xff\xff\xff\x10\x02")
    make().close()
    assert [one["request"] for one in records(tmp_path)] == [f"chatcmpl-{n}" for n in range(7)]
    assert hidden(tmp_path) == []
    [file] = (tmp_path / "audit").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_none_of_ours_is_left(make: Make, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    other = tmp_path / "audit" / ".audit-1.parquet.part"
    other.write_bytes(b"PAR1, of another version")
    log = make()
    log(answered())
    log.close()
    assert other.read_bytes() == b"PAR1, of another version"
    assert len(records(tmp_path)) == 1
