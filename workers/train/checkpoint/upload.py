"""Copies of checkpoints on another filesystem, made beside training.

An object store cannot rename a folder. So `complete.json` comes last, with the digest of every
file, and what lacks it, or does not match it, is no checkpoint.
"""

import json
import threading
import uuid
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs
from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_exponential

from workers.adapter.digest import file_digest
from workers.config.base import InputError, one_line
from workers.run.folders import new_folder

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
        """`tell` gets the reason of each copy that failed, in the thread that copies; `wait`:
        seconds before the first retry."""
        self._place, self._keep, self._tell, self._wait = place, keep, tell, wait
        self._last: Future[None] | None = None
        self._late = threading.Event()
        """Set where there is something better to do than to try the last one again."""
        self._busy: Path | None = None

    @property
    def reading(self) -> Path | None:
        """The folder that is being copied, and must stay."""
        return self._busy

    def put(self, folder: Path) -> Future[None]:
        """Copy `folder` as soon as the one before it is done; what is returned ends with it."""
        self._leave_out()
        self._late, before, self._last = threading.Event(), self._last, Future()
        # An executor's thread would be waited for by a process that ends, hang as the copy may.
        copying = (before, self._last, folder, self._late)
        threading.Thread(target=self._run, args=copying, name="upload", daemon=True).start()
        return self._last

    def abandon(self) -> None:
        """End after what is being copied now, without waiting for it."""
        self._leave_out()

    def finish(self) -> None:
        """Wait for the last copy and end; InputError if it could not be made."""
        if self._last and (error := self._last.exception()):
            raise InputError(f"the last checkpoint cannot be uploaded: {one_line(error)}")

    def _leave_out(self) -> None:
        """The last one, if it waits or is to be tried again."""
        if self._last:
            self._last.cancel()
        self._late.set()

    def _run(
        self,
        before: Future[None] | None,
        this: Future[None],
        folder: Path,
        late: threading.Event,
    ) -> None:
        """One copy at a time: behind the one before."""
        futures.wait([before] if before else [])
        if this.set_running_or_notify_cancel():
            try:
                self._copy(folder, late)
            except BaseException as error:  # whoever waits for it raises it
                this.set_exception(error)
            else:
                this.set_result(None)

    def _copy(self, folder: Path, late: threading.Event) -> None:
        """Copy with retries, until a later one is there instead."""

        def rest(seconds: float) -> None:
            if late.wait(seconds):
                raise CancelledError

        retrying = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(self._wait),
            sleep=rest,
            after=self._failed,
            reraise=True,
        )
        self._busy = folder
        try:
            retrying(self._copy_once, folder)
        except Exception as error:  # a filesystem's own, of any type, or that of telling
            raise OSError(f"{folder.name}: {one_line(error)}") from error
        finally:
            self._busy = None

    def _copy_once(self, folder: Path) -> None:
        self._place.put(folder)
        self._place.prune(folder.name, self._keep)

    def _failed(self, state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        why = f"{state.args[0].name}: {one_line(error)}" if error else ""
        self._tell(f"{why} (attempt {state.attempt_number} of {ATTEMPTS})")


def fetched(place: RemoteFolder, into: Path) -> Path | None:
    """Bring the latest whole checkpoint of a place below the folder `into`; None if there is none.
    One that is damaged is passed over; a place that does not answer is an OSError."""
    for name in reversed(place.complete()):
        with suppress(ValueError):  # InputError, or a list of digests that is none
            with new_folder(into / name) as folder:
                place.get(name, folder)
            return into / name
    return None


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
