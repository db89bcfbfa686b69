"""The cluster of a job. Apart from the job's other parts, which take a while to load."""

import re
from pathlib import Path

from workers.configuration import Spec

_SQLITE_BESIDE_US = re.compile(r"(?P<scheme>sqlite(\+\w+)?:///)(?!/|:memory:|file:)(?P<path>[^?]+)")


class ClusterSpec(Spec):
    """Where it runs and where its files lie."""

    address: str | None = None
    """Ray address; None starts a local cluster, on loopback with token authentication."""
    storage: str = "runs"
    """Folder (on several nodes: a shared one) for studies and adapter versions."""
    store: str | None = None
    """SQLAlchemy URL of studies and registry; None is SQLite in the storage folder."""

    def store_url(self) -> str:
        """URL of the database that holds Optuna's studies and the registry; a SQLite file by its
        whole path, since other processes may run in other folders."""
        if self.store is None:
            return f"sqlite:///{Path(self.storage).resolve() / 'moetune.db'}"
        return _SQLITE_BESIDE_US.sub(
            lambda found: f"{found['scheme']}{Path(found['path']).resolve()}", self.store, count=1
        )

    def study_folder(self, study: str) -> Path:
        """Folder with everything that the study writes."""
        return Path(self.storage).resolve() / "studies" / study
