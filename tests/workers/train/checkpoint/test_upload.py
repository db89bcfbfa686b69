"""Copies of checkpoints on another filesystem, here a folder behind a file:// URI."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from workers.config.base import InputError
from workers.train.checkpoint.upload import ATTEMPTS, COMPLETE, RemoteFolder, Uploads, fetched


def checkpoint(folder: Path, step: int, content: str = "weights") -> Path:
    path = folder / f"step-{step:08d}"
    (path / "adapter").mkdir(parents=True)
    (path / "state.pt").write_text(f"state {step}")
    (path / "adapter" / "weights").write_text(content)
    return path


@pytest.fixture
def place(tmp_path: Path) -> RemoteFolder:
    return RemoteFolder.of(f"file://{tmp_path}/bucket/study/run/")


def uploads(place: RemoteFolder, keep: int = 2, told: list[str] | None = None) -> Uploads:
    return Uploads(place, keep, (told if told is not None else []).append, wait=0.01)


def test_the_latest_are_there_and_come_back(place: RemoteFolder, tmp_path: Path) -> None:
    copies = uploads(place)
    for step in (2, 4, 6):
        copies.put(checkpoint(tmp_path / "run", step)).result()  # each of them, not just the last
    copies.finish()
    assert place.complete() == ["step-00000004", "step-00000006"]
    found = fetched(place, tmp_path / "new")
    assert found == tmp_path / "new" / "step-00000006"
    assert (found / "adapter" / "weights").read_text() == "weights"
    assert sorted(path.name for path in found.rglob("*")) == ["adapter", "state.pt", "weights"]


def test_what_is_not_whole_is_passed_over(place: RemoteFolder, tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        place.put(checkpoint(tmp_path / "run", step))
    there = Path(place.path)
    (there / "step-00000008" / COMPLETE).unlink()  # cut off before its end
    (there / "step-00000006" / "adapter" / "weights").write_text("others")
    (there / "step-00000004" / COMPLETE).write_text("{")
    assert fetched(place, tmp_path / "new") == tmp_path / "new" / "step-00000002"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["step-00000002"]
    assert fetched(RemoteFolder.of(f"file://{tmp_path}/nowhere"), tmp_path / "new") is None


def test_a_copy_that_fails_is_said_and_tried_again(place: RemoteFolder, tmp_path: Path) -> None:
    (tmp_path / "bucket").write_text("a file where a folder must be")
    told: list[str] = []
    copies = uploads(place, told=told)
    copies.put(checkpoint(tmp_path / "run", 2))  # returns although nothing can be copied
    while not told:
        pass
    (tmp_path / "bucket").unlink()
    copies.finish()
    assert told[0].startswith("step-00000002: ")
    assert f"(attempt 1 of {ATTEMPTS})" in told[0]
    assert place.complete() == ["step-00000002"]


def test_only_the_last_copy_must_succeed(place: RemoteFolder, tmp_path: Path) -> None:
    blocker = tmp_path / "bucket"
    blocker.write_text("a file where a folder must be")
    told: list[str] = []
    copies = uploads(place, told=told)
    assert copies.put(checkpoint(tmp_path / "run", 2)).exception()
    assert len(told) == ATTEMPTS
    blocker.unlink()
    copies.put(checkpoint(tmp_path / "run", 4))
    copies.finish()

    blocker.rename(tmp_path / "away")
    blocker.write_text("a file again")
    copies = uploads(place, told=told)
    copies.put(checkpoint(tmp_path / "run", 6))
    with pytest.raises(InputError, match="the last checkpoint cannot be uploaded: step-00000006"):
        copies.finish()


def test_a_filesystem_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"checkpoint\.upload tape://x: cannot be used"):
        RemoteFolder.of("tape://x")


def test_folders_below_a_uri_are_no_part_of_its_query(tmp_path: Path) -> None:
    plain = RemoteFolder.of(f"file://{tmp_path}/b/", "study", "T000")
    assert plain.path == f"{tmp_path}/b/study/T000"
    assert RemoteFolder.of(f"file://{tmp_path}/b?use_mmap=true", "study", "T000").path == plain.path


def test_a_place_is_tried_out_and_left_as_it_was(tmp_path: Path) -> None:
    RemoteFolder.of(f"file://{tmp_path}/new/folder").try_out()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"checkpoint\.upload .*/file/x: cannot be written: "):
        RemoteFolder.of(f"file://{tmp_path}/file/x").try_out()


class Broken(RemoteFolder):
    """A place whose filesystem fails as no filesystem should."""

    def put(self, folder: Path) -> None:
        raise KeyError(folder.name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("telling", [False, True], ids=["of the store", "of telling"])
def test_an_unexpected_error_ends_the_wait_for_the_last_copy(
    place: RemoteFolder, tmp_path: Path, telling: bool
) -> None:
    def full(_: str) -> None:
        raise OSError("No space left on device")

    copies = Uploads(Broken(*place), 2, full if telling else [].append, wait=0.01)
    copies.put(checkpoint(tmp_path / "run", 2))
    with pytest.raises(InputError, match="the last checkpoint cannot be uploaded: step-00000002"):
        copies.finish()


@pytest.mark.timeout(120)
def test_a_later_one_takes_the_place_of_one_that_is_to_be_tried_again(
    place: RemoteFolder, tmp_path: Path
) -> None:
    tried: list[str] = []

    class FailsOnce(RemoteFolder):
        def put(self, folder: Path) -> None:
            tried.append(folder.name)
            if len(tried) == 1:
                raise OSError("away")
            super().put(folder)

    first_failed = threading.Event()
    copies = Uploads(FailsOnce(*place), 2, lambda _: first_failed.set(), wait=1000)
    copies.put(checkpoint(tmp_path / "run", 2))
    first_failed.wait()
    copies.put(checkpoint(tmp_path / "run", 4))
    copies.finish()
    assert tried == ["step-00000002", "step-00000004"]
    assert place.complete() == ["step-00000004"]


@pytest.mark.timeout(120)
def test_who_gives_up_waits_for_nothing(place: RemoteFolder, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(RemoteFolder):
        def put(self, folder: Path) -> None:
            begun.set()
            go_on.wait()
            super().put(folder)

    copies = Uploads(Slow(*place), 2, print)
    first = checkpoint(tmp_path / "run", 2)
    copying = copies.put(first)
    begun.wait()
    later = copies.put(checkpoint(tmp_path / "run", 4))
    assert copies.reading == first
    copies.abandon()
    assert later.cancelled()
    assert not copying.done()
    go_on.set()
    copying.result()
    assert place.complete() == ["step-00000002"], "what was being copied is whole"
    assert copies.reading is None


@pytest.mark.timeout(120)
def test_who_gives_up_tries_nothing_again(place: RemoteFolder, tmp_path: Path) -> None:
    failed = threading.Event()
    copies = Uploads(Broken(*place), 2, lambda _: failed.set(), wait=1000)
    copying = copies.put(checkpoint(tmp_path / "run", 2))
    failed.wait()
    copies.abandon()
    assert copying.exception()


HANGING = """
import sys, threading
from pathlib import Path
from workers.train.checkpoint.upload import RemoteFolder, Uploads

begun = threading.Event()

class Hangs(RemoteFolder):
    def put(self, folder):
        begun.set()
        threading.Event().wait()

copies = Uploads(Hangs(*RemoteFolder.of(sys.argv[1])), 2, print)
copies.put(Path(sys.argv[2]))
begun.wait()
copies.abandon()
"""


@pytest.mark.usefixtures("processes")
def test_a_process_ends_though_a_copy_hangs(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "run", 2)
    command = [sys.executable, "-c", HANGING, (tmp_path / "store").as_uri(), str(folder)]
    assert subprocess.run(command, timeout=120, check=False).returncode == 0


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, processes: None) -> Iterator[str]:
    """URI of a folder in a bucket of moto's S3 server."""
    server = shutil.which("moto_server")
    if server is None:
        pytest.skip("moto_server is not on the path: an object store is not tried")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([server, "-H", "127.0.0.1", "-p", str(port)]) as process:
        try:
            at = f"127.0.0.1:{port}"
            transport = httpx.HTTPTransport(retries=8)  # it takes a while to listen
            with httpx.Client(transport=transport, trust_env=False, timeout=30) as client:
                client.put(f"http://{at}/bucket").raise_for_status()
            how = "scheme=http&region=us-east-1&allow_delayed_open=true"
            yield f"s3://bucket/runs?endpoint_override={at}&{how}"
        finally:
            process.terminate()


@pytest.mark.usefixtures("processes")
def test_an_object_store_behind_a_query(bucket: str, tmp_path: Path) -> None:
    place = RemoteFolder.of(bucket, "study", "T000")
    assert place.path == "bucket/runs/study/T000"
    place.try_out()
    copies = uploads(place, keep=1)
    for step in (2, 4):
        copies.put(checkpoint(tmp_path / "run", step)).result()
    copies.finish()
    assert place.complete() == ["step-00000004"]
    found = fetched(RemoteFolder.of(bucket, "study", "T000"), tmp_path / "new")
    assert found
    assert (found / "state.pt").read_text() == "state 4"
    with pytest.raises(InputError, match=r"checkpoint\.upload none/x: cannot be written: "):
        RemoteFolder.of(bucket.replace("bucket/runs", "none/x")).try_out()
