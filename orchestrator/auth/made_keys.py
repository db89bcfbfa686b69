"""Whether keys were ever made, also where the registry's database no longer says so."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.auth.keys import Key
from workers.config.base import InputError

log = logging.getLogger(__name__)
MARK = "keys-were-made"
"""A file in the storage folder: from the first key on an endpoint is closed, until the last one is
deleted."""


class MadeKeys:
    """Reads the keys. Where there were some, and the database holds none, that is an error unless
    the last one was deleted: it was emptied or replaced, and nothing may be open that was closed.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[Key]],
        storage: str | Path,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """`read` returns all keys, `given_up` whether the last one was deleted
        (`KeyStore.given_up`); `storage` is the endpoint's folder."""
        self._read, self._given_up = read, given_up
        self._mark = Path(storage) / MARK
        self._seen = False

    def __call__(self) -> Sequence[Key]:
        """All keys. Blocks; InputError where they cannot be read, or are gone."""
        keys = self._read()
        if keys:
            self._remember()
        elif (self._seen or self._mark.exists()) and not self._given_up():
            raise InputError(
                "keys were made for this registry, and it holds none: it was emptied or replaced "
                f"({self._mark} remembers); make one with `moetune keys create`; to serve without "
                "keys, delete that one again (`moetune keys delete`)"
            )
        self._seen = bool(keys)
        return keys

    def forget(self) -> None:
        """The last key was deleted: endpoints on loopback ask for none."""
        self._mark.unlink(missing_ok=True)

    def _remember(self) -> None:
        try:
            if not self._mark.exists():
                self._mark.parent.mkdir(parents=True, exist_ok=True)
                self._mark.touch()
        except OSError as error:  # the keys hold all the same
            log.warning("%s cannot be written: %s", self._mark, error)


def check_keys(store_url: str, storage: str | Path) -> None:
    """InputError where keys were made and are gone: an endpoint would let nobody in."""
    if not (Path(storage) / MARK).exists():
        return
    from orchestrator.auth.key_store import KeyStore

    store = KeyStore(store_url)
    try:
        MadeKeys(store.all, storage, store.given_up)()
    finally:
        store.close()
