"""Optuna's storage of a cluster's studies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.spec import ClusterSpec
from workers.spec import InputError

if TYPE_CHECKING:
    import optuna


@contextmanager
def storage(cluster: ClusterSpec, create: bool = False) -> Iterator["optuna.storages.RDBStorage"]:
    """Optuna's storage. InputError if the database cannot be reached, or is not there yet and
    `create` is false."""
    import optuna
    import sqlalchemy as sa

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        url = sa.engine.make_url(cluster.store_url())
    except sa.exc.ArgumentError:
        raise InputError("cluster.store: is no SQLAlchemy URL, as in sqlite:///path") from None
    shown = url.render_as_string(hide_password=True)
    file = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    if file and not create and not file.exists():
        raise InputError(f"{shown}: no studies there yet; run `moetune tune` first")
    try:
        # Dashboards and the registry share the file: wait for them rather than fail.
        patient = {"connect_args": {"timeout": 60}} if file else {}
        yield optuna.storages.RDBStorage(cluster.store_url(), engine_kwargs=patient)
    except (ImportError, sa.exc.NoSuchModuleError) as error:
        raise InputError(f"cluster.store {shown}: no driver for it: {error}") from None
    except (sa.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
        line = " ".join(str(getattr(error, "orig", None) or error).split())
        raise InputError(f"cluster.store {shown}: cannot be used: {line}") from None
