"""Records out of any source, in order, and a digest of its content."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from workers.config.base import InputError, one_line
from workers.config.data import DataSpec
from workers.data.sources.files import files
from workers.data.sources.formats import reader
from workers.data.sources.hub import (
    HUB,
    hub_fingerprint,
    hub_listing,
    hub_records,
    hub_stream,
)
from workers.data.sources.record import File, Records, Wanted
from workers.data.store.digests import files_digest


def records(source: str, wanted: Wanted) -> Records:
    """Every record of a source, in order. Nothing is read beyond what the caller takes.

    Raises InputError for a file that is missing, unreadable, or in another format.
    """
    with _reading(source):
        if source.startswith(HUB):
            yield from hub_records(source, wanted)
        else:
            yield from _of_files(files(source), wanted)


def streamed_records(source: str, wanted: Wanted, order: Random | None = None) -> Records:
    """Every record of a source, its files in the order that `order` draws. Nothing is kept: a hub's
    data set is not downloaded but read from there. InputError as of `records`."""
    with _reading(source):
        if source.startswith(HUB):
            yield from hub_stream(source, wanted)
            return
        some = files(source)
        if order:
            order.shuffle(some)
        yield from _of_files(some, wanted)


def size(source: str) -> int | None:
    """Bytes of a source's files; None of a hub's, which says nothing sure."""
    if source.startswith(HUB):
        return None
    with _reading(source):
        return sum(int(file.info.size) for file in files(source))


def digest(source: str, moving: Callable[[], None] = lambda: None) -> str:
    """sha256 over the bytes of a source's files, or over the fingerprint of a hub data set.
    `moving` is called again and again while bytes are read."""
    if source.startswith(HUB):
        return hashlib.sha256(hub_fingerprint(source).encode()).hexdigest()
    with _reading(source):
        return files_digest(source, files(source), moving)


def listing_digest(source: str) -> str:
    """sha256 over the names, sizes and times of a source's files, in place of the bytes of what is
    streamed."""
    if source.startswith(HUB):
        return hashlib.sha256(hub_listing(source).encode()).hexdigest()
    with _reading(source):
        infos = [file.info for file in files(source)]
    facts = [(info.base_name, info.size, info.mtime_ns) for info in infos]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


@dataclass(frozen=True)
class SourceDigests:
    """Of each of a run's sources, by its name."""

    contents: Mapping[str, str]
    listings: Mapping[str, str]
    """Of those that are streamed, in place of their content."""

    @classmethod
    def of(cls, spec: DataSpec) -> "SourceDigests":
        """Take them. InputError where a source cannot be read."""
        learned = [one.source for one in spec.sources]
        compared = [spec.validation] if isinstance(spec.validation, str) else []
        streamed, stored = (learned, compared) if spec.streaming else ([], learned + compared)
        return cls(
            {one: digest(one) for one in stored}, {one: listing_digest(one) for one in streamed}
        )


def data_digest(spec: DataSpec, known: SourceDigests | None = None) -> str:
    """Digest of all of a run's sources, and of what is held out of them. `known`: of each, where
    they have been taken."""
    found = known or SourceDigests.of(spec)
    of_learned = found.listings if spec.streaming else found.contents
    digests = [of_learned[one.source] for one in spec.sources]
    if isinstance(spec.validation, str):
        digests.append(found.contents[spec.validation])
    split = f" held out: {spec.held_out!r}" if spec.held_out else ""
    return hashlib.sha256(("".join(digests) + split).encode()).hexdigest()


def changed(source: str) -> InputError:
    """What is said of a source that is no longer what it was."""
    return InputError(f"{source}: has changed while it was read; begin again")


def _of_files(some: Iterable[File], wanted: Wanted) -> Records:
    for file in some:
        yield from reader(file.path)(file, wanted)


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # of a disk or a network, wherever it comes: it is not the store's
        raise InputError(f"{source}: cannot be read: {one_line(error)}") from None
