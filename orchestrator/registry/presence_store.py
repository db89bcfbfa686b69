"""What gateways say of themselves, in the registry's database. Loaded only when it is used."""

from collections.abc import Sequence

import sqlalchemy as sa

from orchestrator.store.database import Database
from orchestrator.store.schema import SERVING


class PresenceStore:
    """One row a gateway, which it writes anew again and again."""

    def __init__(self, url: str) -> None:
        """Connect and make the table where it is missing."""
        self._database = Database(url, (SERVING,))

    def say(self, gateway: str, names: Sequence[str], beats: int) -> None:
        """This gateway serves these names; `beats` grows from call to call."""
        values = {"names": list(names), "beats": beats}
        mine = SERVING.c.gateway == gateway

        def work(connection: sa.Connection) -> None:
            if not connection.execute(sa.update(SERVING).where(mine).values(values)).rowcount:
                connection.execute(sa.insert(SERVING).values({"gateway": gateway, **values}))

        self._database.attempt(work)

    def beats(self, name: str | None = None) -> dict[str, int]:
        """By gateway, of those that say they serve the name if one is given, the latest beat."""
        rows = self._database.rows(sa.select(SERVING))
        told = [row for row in rows if name is None or name in row["names"]]
        return {row["gateway"]: row["beats"] for row in told}

    def forget(self, gateway: str, beats: int | None = None) -> None:
        """It is gone; unless it has said more than `beats` meanwhile."""
        statement = sa.delete(SERVING).where(SERVING.c.gateway == gateway)
        if beats is not None:
            statement = statement.where(SERVING.c.beats == beats)
        with self._database.transaction() as connection:
            connection.execute(statement)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
