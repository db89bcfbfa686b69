"""What ends a study on its way: a fault of its store, or bad input, instead of Tune's traceback."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from orchestrator.store.connections import store_fault
from orchestrator.store.errors import StoreError
from orchestrator.tuning.searcher import StudySearch


@contextmanager
def refusing(search: StudySearch, store: sa.Engine, ours: Callable[[], bool]) -> Iterator[None]:
    """Raises `search.refusal` in place of what Tune has made of it. A fault of the store becomes
    one, whichever part of Tune has asked; so does a study that is no longer `ours` when the store
    is connected to anew."""

    def note(context: sa.ExceptionContext) -> None:
        fault = context.sqlalchemy_exception
        if fault is None or isinstance(fault, IntegrityError) or context.is_pre_ping:
            return  # who asked looks after it
        search.refusal = search.refusal or StoreError(f"the store failed: {store_fault(fault)}")

    def connected(*_: object) -> None:
        if not ours():
            search.refusal = StoreError("another process has gone on with the study meanwhile")
            raise search.refusal

    def quiet(_: logging.LogRecord) -> bool:
        return search.refusal is None  # Tune logs the traceback of what it meets then

    tunes = logging.getLogger("ray.tune.execution.tune_controller")
    sa.event.listen(store, "handle_error", note)
    sa.event.listen(store, "connect", connected)
    tunes.addFilter(quiet)
    try:
        yield
    except Exception:
        if search.refusal:
            raise search.refusal from None
        raise
    finally:
        tunes.removeFilter(quiet)
        sa.event.remove(store, "handle_error", note)
        sa.event.remove(store, "connect", connected)
