"""Optuna's storage of a cluster's studies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.spec import ClusterSpec
from workers.spec import InputError

if TYPE_CHECKING:
    import optuna
    import sqlalchemy as sa


def database_file(cluster: ClusterSpec) -> Path | None:
    """The SQLite file of a cluster's studies, there or not; None for a database server."""
    url = _url(cluster)
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise InputError("cluster.store: a database in memory would be gone with this process")
    return Path(url.database)


@contextmanager
def storage(cluster: ClusterSpec, create: bool = False) -> Iterator["optuna.storages.RDBStorage"]:
    """Optuna's storage. InputError if the database cannot be reached, or is not there yet and
    `create` is false."""
    import optuna
    import sqlalchemy as sa

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shown, file = _url(cluster).render_as_string(hide_password=True), database_file(cluster)
    if file and not create and not file.exists():
        raise InputError(f"{shown}: no studies there yet; run `moetune tune` first")
    # Dashboards and the registry share the file: wait for them rather than fail.
    patient = {"connect_args": {"timeout": 60}} if file else {}
    try:
        try:
            store = optuna.storages.RDBStorage(cluster.store_url(), engine_kwargs=patient)
        except (ImportError, sa.exc.NoSuchModuleError) as error:
            raise InputError(f"cluster.store {shown}: no driver for it: {error}") from None
        yield store
    except (sa.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
        line = " ".join(str(getattr(error, "orig", None) or error).split())
        raise InputError(f"cluster.store {shown}: cannot be used: {line}") from None


def _url(cluster: ClusterSpec) -> "sa.URL":
    import sqlalchemy as sa

    try:
        return sa.make_url(cluster.store_url())
    except sa.exc.ArgumentError:
        raise InputError("cluster.store: is no SQLAlchemy URL, as in sqlite:///path") from None
