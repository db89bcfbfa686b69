"""Optuna's storage of a cluster's studies."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.cluster import ClusterSpec
from orchestrator.store.errors import StoreError
from workers.config.base import InputError, StorageError, one_line

if TYPE_CHECKING:
    import optuna
    import sqlalchemy as sa


class CutOff(StorageError):  # noqa: N818
    """It has failed in mid-study, which can be gone on with."""


_LAST_TABLE = "alembic_version"
"""Optuna makes it last."""


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
    """Optuna's storage. With `create` its tables are made where they are missing, and a server that
    is away later is waited for.

    InputError where there is no such database, or without `create` no study in it; StoreError
    where it fails.
    """
    with store_errors(cluster):
        store = _made(cluster) if create else _found(cluster)
        try:
            yield store
        finally:
            store.engine.dispose()


def stored_trial(
    study: "optuna.Study", store: "optuna.storages.RDBStorage", number: int
) -> "optuna.Trial":
    """A trial of a study in `store`, to be written to, whichever process has asked for it."""
    import optuna

    study_id = store.get_study_id_from_name(study.study_name)
    return optuna.Trial(study, store.get_trial_id_from_study_id_trial_number(study_id, number))


def study_names(cluster: ClusterSpec) -> list[str]:
    """Names of the studies in a cluster's database, sorted; it need not be there, and nothing is
    made. Raises as `storage` does."""
    import optuna

    with store_errors(cluster):
        if not _has_tables(cluster):
            return []
    with storage(cluster) as store:
        return sorted(optuna.get_all_study_names(store))


def _made(cluster: ClusterSpec) -> "optuna.storages.RDBStorage":
    from orchestrator.store.connections import PATIENCE_SECONDS
    from orchestrator.store.lock import MAKING_SECONDS, store_lock

    with store_lock(cluster.store_url(), "tables", MAKING_SECONDS):
        return _optunas(cluster, True, PATIENCE_SECONDS)


def _found(cluster: ClusterSpec) -> "optuna.storages.RDBStorage":
    if not _has_tables(cluster):
        shown = cluster.shown_store()
        raise InputError(f"{shown}: no studies there yet; run `moetune tune` first")
    return _optunas(cluster, create=False)


def _optunas(
    cluster: ClusterSpec, create: bool, patience: float = 0.0
) -> "optuna.storages.RDBStorage":
    """Optuna's own check runs the scripts of all its migrations, which takes longer than all else
    here; tables that this very Optuna has made or upgraded need none."""
    import optuna

    from orchestrator.store.connections import Connect, engine_options

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # As SQLAlchemy writes it: Optuna takes braces for places of its own.
    url = _url(cluster).render_as_string(hide_password=False)
    options = engine_options(url, Connect(cluster.store_url, patience))
    made = partial(
        optuna.storages.RDBStorage, url, engine_kwargs=options, skip_table_creation=not create
    )
    store = made(skip_compatibility_check=True)
    if _optuna_of(store.engine) == optuna.__version__:
        return store
    store.engine.dispose()
    try:
        return made()
    except RuntimeError as error:  # tables of another version of Optuna
        raise InputError(f"cluster.store {cluster.shown_store()}: {one_line(error)}") from None


def _optuna_of(engine: "sa.Engine") -> str | None:
    """The version of the Optuna whose tables these are, as it has noted itself."""
    import sqlalchemy as sa

    query = sa.select(sa.column("library_version", sa.String)).select_from(sa.table("version_info"))
    with engine.connect() as connection:
        return connection.execute(query).scalar()


def _has_tables(cluster: ClusterSpec) -> bool:
    """Whether Optuna's tables are there; looks only."""
    import sqlalchemy as sa

    from orchestrator.store.connections import engine_of

    file = database_file(cluster)
    if file and not file.exists():
        return False
    engine = engine_of(cluster.store_url(), poolclass=sa.NullPool)
    return bool(sa.inspect(engine).has_table(_LAST_TABLE))


@contextmanager
def store_errors(cluster: ClusterSpec) -> Iterator[None]:
    """What the database raises in here is one line that names it."""
    import optuna
    import sqlalchemy as sa

    from orchestrator.store.connections import store_fault

    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        why = store_fault(error) or one_line(error)
        shown = cluster.shown_store()
        raise StoreError(f"cluster.store {shown}: cannot be used: {why}") from None


def _url(cluster: ClusterSpec) -> "sa.URL":
    """Without a password."""
    from orchestrator.store.connections import parsed

    return parsed(cluster.shown_store())
