"""Adapter versions on one model: each in its slot, pinned while a request uses it."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress

from transformers import PreTrainedModel

from workers.adapter import files
from workers.adapter.digest import folder_digest
from workers.config.base import StorageError
from workers.engine.request import AdapterRef, RequestError
from workers.injection.adapter import Adapter
from workers.injection.row_map import RowMap


class SlotStore:
    """Loads, pins and evicts adapters. Safe to call from several threads.

    A slot never changes its weights: another version is another slot, so a request keeps the one
    that it began with.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: RowMap,
        max_adapters: int,
        model_lock: AbstractContextManager[object],
        on_load: Callable[[str, Adapter], None],
    ) -> None:
        self._model, self._rows = model, rows
        self._max, self._on_load = max_adapters, on_load
        self._model_lock = model_lock
        """Held while the model's modules change; the generation loop holds it in a forward pass."""
        self._loading = threading.Lock()
        self._state = threading.Lock()
        self._held: OrderedDict[str, Adapter] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._leaving: set[str] = set()
        """Held until their last request has ended."""
        self._kept: frozenset[str] = frozenset()
        # An unpin comes from an event loop, which must not wait for a forward pass to end.
        self._sweeper = ThreadPoolExecutor(1, "slots")

    @property
    def held(self) -> tuple[str, ...]:
        """Slots that stay, least recently used first."""
        with self._state:
            return tuple(slot for slot in self._held if slot not in self._leaving)

    def load(self, adapter: AdapterRef) -> None:
        """Hold an adapter ready; raises InputError where it cannot be read or does not fit."""
        with self._state:
            self._leaving.discard(adapter.slot)
        self.pin(adapter)
        self.unpin(adapter.slot)

    def keep(self, slots: Collection[str]) -> None:
        """From now on these, held or not yet, make room for one another only."""
        with self._state:
            self._kept = frozenset(slots)

    def unload(self, slot: str) -> None:
        """Drop an adapter, now or with its last `unpin`. Requests may still pin it until then."""
        with self._state:
            if slot in self._held:
                self._leaving.add(slot)
        self._sweep()

    def close(self) -> None:
        """Wait for what is on its way out."""
        self._sweeper.shutdown()

    def pin(self, adapter: AdapterRef) -> None:
        """Hold an adapter until `unpin`, loading it first if it is not there."""
        if self.pin_held(adapter.slot):
            return
        with self._loading:
            if self.pin_held(adapter.slot):
                return
            self._make_room(adapter.slot)
            read = files.read(adapter.folder)
            _same(adapter)
            with self._model_lock:
                held = files.put(self._model, read, adapter.folder, adapter.slot, self._rows)
                self._on_load(adapter.slot, held)
            with self._state:
                self._held[adapter.slot] = held
                self._pins[adapter.slot] += 1

    def pin_held(self, slot: str) -> bool:
        """Pin a slot that is loaded already; False where it is not."""
        with self._state:
            if slot not in self._held:
                return False
            self._held.move_to_end(slot)
            self._pins[slot] += 1
            return True

    def unpin(self, slot: str) -> None:
        """Give back one `pin`."""
        with self._state:
            self._pins[slot] -= 1
            leaves = slot in self._leaving and not self._pins[slot]
        if leaves:
            with suppress(RuntimeError):  # closed: the model keeps what it has
                self._sweeper.submit(self._sweep)

    def _sweep(self) -> None:
        """Take off what leaves and is idle."""
        with self._loading:
            with self._state:
                gone = [slot for slot in self._leaving if not self._pins[slot]]
                removed = [self._held.pop(slot) for slot in gone]
                self._leaving.difference_update(gone)
            for adapter in removed:
                with self._model_lock:
                    adapter.remove()

    def _make_room(self, slot: str) -> None:
        """Take idle adapters off the model until this one fits: the least recently used first, and
        those that are to be kept last, for such a one only."""
        while len(self._held) >= self._max:
            with self._state:
                idle = [slot for slot in self._held if not self._pins[slot]]
                first = sorted(idle, key=self._kept.__contains__)[:1]
                if not first or (first[0] in self._kept and slot not in self._kept):
                    raise RequestError(
                        f"all {self._max} adapter slots are in use; try again", "model", 429
                    )
                evicted = self._held.pop(first[0])
                self._leaving.discard(first[0])
            with self._model_lock:
                evicted.remove()


def _same(adapter: AdapterRef) -> None:
    """Refuse a folder that holds something else than it did: a slot that was evicted is read
    again, and what it is called must be what answers."""
    if adapter.digest is not None and folder_digest(adapter.folder) != adapter.digest:
        raise StorageError(f"version {adapter.slot}: its folder {adapter.folder} was altered")
