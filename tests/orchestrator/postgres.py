"""A PostgreSQL server for the tests: of their own, in a temporary folder, on a free port."""

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

USERS = ("postgres", "nobody")
"""PostgreSQL refuses to run as root: then one of these runs it."""


@dataclass
class Postgres:
    """A server that can be stopped and started again; it keeps what it was told."""

    folder: Path
    port: int
    user: str | None
    """Who runs it; None is who runs the tests."""
    _number: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-w", "-D", "data", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, whoever is connected."""
        self._run("pg_ctl", "-w", "-D", "data", "-m", "immediate", "stop")

    def new_store(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        server, name = (
            f"postgresql+psycopg://me@127.0.0.1:{self.port}",
            f"store{next(self._number)}",
        )
        engine = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return f"{server}/{name}"

    def make(self) -> None:
        """Write the files of a new server."""
        self._run("initdb", "-D", "data", "-U", "me", "-A", "trust", "--no-sync", "-E", "UTF8")

    def _run(self, program: str, *arguments: str) -> None:
        said = self.folder / "said"  # no pipe: the server would hold it open
        with said.open("w") as out:
            done = subprocess.run(
                [program, *arguments],
                check=False,
                cwd=self.folder,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        assert done.returncode == 0, f"{program}: {said.read_text()}"


def missing() -> str | None:
    """What keeps a server from running here; None where nothing does."""
    lacking = [one for one in ("initdb", "pg_ctl") if shutil.which(one) is None]
    return f"PostgreSQL is not installed: no {', '.join(lacking)}" if lacking else None


@contextmanager
def running() -> Iterator[Postgres]:
    """A server until the block ends; its files go with it."""
    folder = Path(tempfile.mkdtemp(prefix="moetune-postgres-"))
    user = _other_user() if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    server = Postgres(folder, _free_port(), user)
    try:
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _other_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in USERS if user in known)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
