"""Records out of any source, in order, and a digest of its content."""

import hashlib
from collections.abc import Callable, Mapping

from workers.config.base import InputError, one_line
from workers.config.data import DataSpec
from workers.data.sources.files import files
from workers.data.sources.formats import reader
from workers.data.sources.hub import HUB, hub_fingerprint, hub_records
from workers.data.sources.record import Records, Wanted
from workers.data.store.digests import files_digest


def records(source: str, wanted: Wanted) -> Records:
    """Every record of a source, in order. Nothing is read beyond what the caller takes.

    Raises InputError for a file that is missing, unreadable, or in another format.
    """
    try:
        if source.startswith(HUB):
            yield from hub_records(source, wanted)
            return
        for file in files(source):
            yield from reader(file.path)(file, wanted)
    except OSError as error:  # of a disk or a network, wherever it comes: it is not the store's
        raise InputError(f"{source}: cannot be read: {one_line(error)}") from None


def digest(source: str, moving: Callable[[], None] = lambda: None) -> str:
    """sha256 over the bytes of a source's files, or over the fingerprint of a hub data set.
    `moving` is called again and again while bytes are read."""
    if source.startswith(HUB):
        return hashlib.sha256(hub_fingerprint(source).encode()).hexdigest()
    try:
        return files_digest(source, files(source), moving)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {one_line(error)}") from None


def source_digests(spec: DataSpec) -> dict[str, str]:
    """Of each of a run's sources."""
    return {source: digest(source) for source in _sources(spec)}


def data_digest(spec: DataSpec, known: Mapping[str, str] | None = None) -> str:
    """Digest of the content of all of a run's sources, and of what is held out of them. `known`:
    their digests, where they have been taken."""
    found = known or source_digests(spec)
    split = f" held out: {spec.held_out!r}" if spec.held_out else ""
    content = "".join(found[source] for source in _sources(spec)) + split
    return hashlib.sha256(content.encode()).hexdigest()


def changed(source: str) -> InputError:
    """What is said of a source that is no longer what it was."""
    return InputError(f"{source}: has changed while it was read; begin again")


def _sources(spec: DataSpec) -> list[str]:
    names = [one.source for one in spec.sources]
    return names + ([spec.validation] if isinstance(spec.validation, str) else [])
