"""The folders of adapter versions: `FOLDER/DIGEST`, named by their content and never changed."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from workers.adapter import folder as folders
from workers.adapter.digest import folder_digest
from workers.adapter.manifest import Manifest, read_manifest, write_manifest
from workers.config.base import InputError, StorageError, validated
from workers.run.files import delete
from workers.run.folders import RANDOM, hidden_folder, settle, sweep

KEPT = (folders.WEIGHTS, folders.CONFIG, folders.MANIFEST)
VERIFIED = 256
"""Folders that need not be hashed again, those that were asked for last."""
Stamp = tuple[tuple[str, int, int], ...]
"""Name, size and time of each file of a folder."""


class VersionFiles:
    """Adds folders, and notices lost or altered ones."""

    def __init__(self, folder: Path, ours: Path) -> None:
        """`folder` may not exist yet. Below `ours` nobody but moetune writes, and always whole new
        files (`workers.adapter.folder.written_whole`): they may stand in both places at once."""
        self._folder, self._ours = folder, ours
        self._check = lru_cache(VERIFIED)(self._hash)  # remembers no failure

    def path(self, digest: str) -> Path:
        """Where the version of this digest lies."""
        return self._folder / digest

    def add(self, source: Path, facts: Mapping[str, Any]) -> str:
        """Take an adapter in, with `facts` written into its manifest; returns its digest. Ours
        stands on disk once: the version's files are further names (hard links) of the source's, as
        far as the file system has such; any other adapter is copied."""
        try:
            with self.staging() as temporary:
                # What was taken is what is checked: the source may change under our hands.
                _take(source, temporary, source.resolve().is_relative_to(self._ours.resolve()))
                _complete(temporary, facts, source)
                digest = folder_digest(temporary)
                sweep(temporary, f".{RANDOM}")
                for path in temporary.iterdir():
                    path.chmod(0o444)
                # One that is there already has the same content, or `verify` notices.
                settle(temporary, self.path(digest), keep=True)
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be written: {error.strerror}") from None
        self.verify(digest)
        return digest

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder for an adapter on its way in, which every node sees; gone afterwards. `add`
        sweeps what killed processes left."""
        with ExitStack() as until_end:
            try:
                temporary = until_end.enter_context(hidden_folder(self._folder))
            except OSError as error:
                raise StorageError(f"{self._folder}: cannot be written: {error.strerror}") from None
            yield temporary

    def manifest(self, digest: str) -> Manifest:
        """The lineage in a verified folder."""
        self.verify(digest)
        try:
            manifest = read_manifest(self.path(digest))
        except InputError as error:  # it was read when it was stored
            raise StorageError(str(error)) from None
        assert manifest is not None, "a stored folder has a manifest"
        return manifest

    def verify(self, digest: str) -> None:
        """Refuse a folder that was lost or altered. Hashes it again only where a file's size or
        time differs from when this process last did."""
        folder = self.path(digest)
        if not folder.is_dir():
            raise StorageError(f"version {digest[:12]}: its folder {folder} is gone")
        try:
            files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
        except OSError as error:
            raise StorageError(f"{folder}: cannot be read: {error.strerror}") from None
        self._check(digest, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))

    def there(self, id: str) -> bool:
        """Whether there is a folder whose name begins so."""
        return any(path.is_dir() for path in self._folder.glob(f"{id}*"))

    def remove(self, digest: str) -> None:
        """Delete a folder, if it is there: whole, or else under a name that `clean` knows."""
        try:
            delete(self.path(digest))
        except OSError as error:
            raise StorageError(
                f"{self.path(digest)}: cannot be deleted: {error.strerror}"
            ) from None

    def _hash(self, digest: str, stamp: Stamp) -> None:
        folder = self.path(digest)
        if {name for name, *_ in stamp} != set(KEPT) or folder_digest(folder) != digest:
            raise StorageError(f"version {digest[:12]}: its folder {folder} was altered")


def _take(source: Path, target: Path, ours: bool) -> None:
    if folders.member(folders.existing(source), folders.MANIFEST) is None:
        raise InputError(f"{source}: has no manifest; bring it in with `moetune adapter import`")
    for name in KEPT:
        path = folders.required(source, name)
        # The manifest gets facts, and so is another file.
        if not (ours and name != folders.MANIFEST and _linked(path, target / name)):
            shutil.copyfile(path, target / name, follow_symlinks=False)


def _linked(path: Path, target: Path) -> bool:
    """A further name for our own file; False where there can be none: on another device, say."""
    if path.lstat().st_uid != os.geteuid():  # its owner could write to it
        return False
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError:
        return False
    return True


def _complete(folder: Path, facts: Mapping[str, Any], source: Path) -> None:
    """Check the adapter whole, then write the facts into its manifest."""
    from workers.adapter.files import read

    try:
        manifest = read(folder).manifest
    except InputError as error:
        raise InputError(str(error).replace(str(folder), str(source))) from None
    assert manifest is not None, "_take has seen to it"
    values = {**manifest.model_dump(mode="json"), **facts}
    write_manifest(folder, validated(Manifest, values, f"{source}: lineage"))
