"""What goes wrong with the database."""

from workers.config.base import StorageError


class StoreError(StorageError):
    """The database of studies and registry has failed, or is out of reach."""
