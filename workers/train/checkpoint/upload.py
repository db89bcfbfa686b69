"""Copies of checkpoints on another filesystem, made beside training.

An object store cannot rename a folder. So `complete.json` comes last, with the digest of every
file, and what lacks it, or does not match it, is no checkpoint.
"""

import json
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from workers.adapter.digest import file_digest
from workers.config.base import InputError, one_line

COMPLETE = "complete.json"
ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.5
"""Before a failed copy is tried again; doubled each time."""
_ERRORS = (OSError, pa.ArrowException)


class RemoteFolder(NamedTuple):
    """A folder on a filesystem."""

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def of(cls, uri: str, *below: str) -> "RemoteFolder":
        """The folder that a URI names, or one `below` it: paths are joined, for a URI may end with
        a query. InputError if there is no such filesystem."""
        try:
            filesystem, path = fs.FileSystem.from_uri(uri)
        except (*_ERRORS, ValueError) as error:
            why = one_line(error)
            raise InputError(f"checkpoint.upload {uri}: cannot be used: {why}") from None
        return cls(filesystem, "/".join((path.rstrip("/"), *below)))

    def try_out(self) -> None:
        """InputError where nothing can be written there. It leaves nothing behind."""
        probe = f"{self._existing()}/.moetune-{uuid.uuid4().hex}"
        try:
            with self.filesystem.open_output_stream(probe, compression=None) as stream:
                stream.write(b"moetune")  # some object stores fail to put nothing
            self.filesystem.delete_file(probe)
        except _ERRORS as error:
            why = one_line(error)
            raise InputError(f"checkpoint.upload {self.path}: cannot be written: {why}") from None

    def complete(self) -> list[str]:
        """Names of the whole checkpoints there, oldest first."""
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        entries = [Path(entry.path) for entry in self.filesystem.get_file_info(selector)]
        return sorted(path.parent.name for path in entries if path.name == COMPLETE)

    def put(self, folder: Path) -> None:
        """Copy a folder, its list of digests last; nothing to do where it is there already."""
        there, wanted = f"{self.path}/{folder.name}", json.dumps(_digests(folder))
        marker = f"{there}/{COMPLETE}"
        if self.filesystem.get_file_info(marker).is_file:
            with self.filesystem.open_input_stream(marker, compression=None) as stream:
                if stream.read().decode() == wanted:
                    return
            self.filesystem.delete_file(marker)
        self.filesystem.create_dir(there)
        fs.copy_files(str(folder), there, destination_filesystem=self.filesystem, use_threads=False)
        with self.filesystem.open_output_stream(marker, compression=None) as stream:
            stream.write(wanted.encode())

    def get(self, name: str, into: Path) -> None:
        """Copy a checkpoint into an existing folder; InputError where it does not match its
        digests."""
        there = f"{self.path}/{name}"
        fs.copy_files(there, str(into), source_filesystem=self.filesystem, use_threads=False)
        marker = into / COMPLETE
        wanted = json.loads(marker.read_text())
        marker.unlink()
        if _digests(into) != wanted:
            raise InputError(f"{there}: is not what was uploaded there")

    def _existing(self) -> str:
        """The part of the path that is there. An object store has no folders to ask for, and may
        let us write below the path alone."""
        folder = Path(self.path)
        while isinstance(self.filesystem, fs.LocalFileSystem) and not folder.exists():
            folder = folder.parent
        return str(folder).rstrip("/")

    def prune(self, latest: str, keep: int) -> None:
        """Leave the last `keep` up to the checkpoint `latest`, and none after it."""
        names = self.complete()
        kept = [name for name in names if name <= latest][-keep:]
        for name in names:
            if name not in kept:
                self.filesystem.delete_dir(f"{self.path}/{name}")


class Uploads:
    """Copies one checkpoint after another to a place; where they come faster than they can be
    copied, the latest is next and those before it are left out."""

    def __init__(
        self,
        place: RemoteFolder,
        keep: int,
        tell: Callable[[str], None],
        wait: float = FIRST_WAIT_SECONDS,
    ) -> None:
        """`tell` gets the reason of each copy that failed, in this object's thread; `wait`: seconds
        before the first retry."""
        self._place, self._keep, self._tell, self._wait = place, keep, tell, wait
        self._changed = threading.Condition()
        self._next: Path | None = None
        self._busy: Path | None = None
        self._failure: str | None = None
        self._ended = False
        threading.Thread(target=self._run, name="moetune-uploads", daemon=True).start()

    @property
    def reading(self) -> Path | None:
        """The folder that is being copied, and must stay."""
        return self._busy

    def put(self, folder: Path) -> None:
        """Copy `folder` as soon as the one before it is done. Returns at once."""
        with self._changed:
            self._next = folder
            self._changed.notify_all()

    def abandon(self) -> None:
        """End after what is being copied now, without waiting for it."""
        with self._changed:
            self._next, self._ended = None, True
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait for the last copy and end; InputError if it could not be made."""
        with self._changed:
            self._changed.wait_for(lambda: self._next is None and self._busy is None)
            self._ended = True
            self._changed.notify_all()
            if self._failure:
                raise InputError(f"the last checkpoint cannot be uploaded: {self._failure}")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._ended)
                self._busy, self._next = self._next, None
            if self._busy is None:
                return
            try:
                failure = self._copy(self._busy)
            except Exception as error:  # telling may fail too; who waits must not wait for ever
                failure = f"{self._busy.name}: {one_line(error)}"
            with self._changed:
                self._failure, self._busy = failure, None
                self._changed.notify_all()

    def _copy(self, folder: Path) -> str | None:
        """Copy with retries, until a later one is there instead; why it failed, if it did."""
        wait, failure = self._wait, None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._place.put(folder)
                self._place.prune(folder.name, self._keep)
                return None
            except Exception as error:  # a filesystem's own, of any type
                failure = f"{folder.name}: {one_line(error)}"
                self._tell(f"{failure} (attempt {attempt} of {ATTEMPTS})")
            with self._changed:
                if attempt < ATTEMPTS and self._changed.wait_for(self._is_late, wait):
                    break
            wait *= 2
        return failure

    def _is_late(self) -> bool:
        """Whether there is something better to do than to try again."""
        return self._next is not None or self._ended


def fetched(place: RemoteFolder, into: Path) -> Path | None:
    """Bring the latest whole checkpoint of a place below the folder `into`; None if there is none.
    One that is damaged is passed over; a place that does not answer is an OSError."""
    for name in reversed(place.complete()):
        folder = into / f".{name}.fetched"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            place.get(name, folder)
            return folder.rename(into / name)
        except ValueError:  # InputError, or a list of digests that is none
            shutil.rmtree(folder, ignore_errors=True)
    return None


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
