"""What is kept of each request (`serve.audit`)."""

from typing import Annotated

from pydantic import Field

from workers.config.base import PositiveInt, Spec


class AuditSpec(Spec):
    """The audit log: Parquet files with one record for each request."""

    on: bool = True
    """Write it."""
    folder: str | None = None
    """Where to; None is `audit` in the endpoint's storage folder."""
    text: bool = False
    """Keep prompts and answers too."""
    rotate_rows: PositiveInt = 10_000
    """Records of a file at most."""
    rotate_minutes: Annotated[float, Field(gt=0)] = 5.0
    """A file is closed after so many minutes: what a machine that loses its power may lose. A
    gateway that is killed loses a second, and finds the rest when it starts again."""
    queue: PositiveInt = 10_000
    """Records that may wait for the disk; further ones are dropped, and counted."""
