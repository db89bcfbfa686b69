"""The cluster of a job. Apart from the job's other parts, which take a while to load."""

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator

from orchestrator.config.relative_paths import sqlite_placed
from workers.config.base import Spec
from workers.config.credentials import refuse_credentials, without_credentials

STORE_VARIABLE = "MOETUNE_STORE"


def _no_password(url: str) -> str:
    return refuse_credentials(
        url, f"leave it out and set {STORE_VARIABLE} (to the whole URL) or PGPASSWORD"
    )


class ClusterSpec(Spec):
    """Where it runs and where its files lie."""

    address: str | None = None
    """Ray address; None starts a local cluster, on loopback with token authentication."""
    storage: str = "runs"
    """Folder (on several nodes: a shared one) for studies and adapter versions."""
    store: Annotated[str, AfterValidator(_no_password)] | None = None
    """SQLAlchemy URL of studies and registry, without a password. None is what MOETUNE_STORE names,
    and without that SQLite in the storage folder."""

    @property
    def named_store(self) -> str | None:
        """The URL that the job or else MOETUNE_STORE names, without a password."""
        given = os.environ.get(STORE_VARIABLE)
        return self.store or (without_credentials(given) if given else None)

    def shown_store(self) -> str:
        """URL of the database that holds Optuna's studies and the registry, without a password; a
        SQLite file by its whole path, since other processes may run in other folders."""
        if named := self.named_store:
            return _whole(named)
        return f"sqlite:///{quote(str(Path(self.storage).resolve() / 'moetune.db'))}"

    def store_url(self) -> str:
        """The same with the password that MOETUNE_STORE has for it: to connect with, and for no
        file and no message."""
        given, shown = _whole(os.environ.get(STORE_VARIABLE, "")), self.shown_store()
        return given if without_credentials(given) == shown else shown

    def study_folder(self, study: str) -> Path:
        """Folder with everything that the study writes."""
        return Path(self.storage).resolve() / "studies" / study


def _whole(url: str) -> str:
    """The URL with the whole path of a SQLite file."""
    return sqlite_placed(url, lambda path: Path(path).resolve())
