"""A PostgreSQL server of the distribution for the time of a test session, on a socket of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from sqlalchemy import create_engine, text

from db import tables
from db.session import open_engine

_OLDEST = 15
_TEMPLATE = "template_duranova"
# Nothing of a test's database has to survive the test.
_OPTIONS = (
    "-c listen_addresses='' -c fsync=off -c synchronous_commit=off -c full_page_writes=off "
    "-c max_connections=200 -c shared_buffers=32MB"
)


def binaries() -> Path | None:
    """The programs of the newest PostgreSQL that is new enough, if there is one."""
    found = sorted(
        (int(p.parent.name), p)
        for p in Path("/usr/lib/postgresql").glob("*/bin")
        if p.parent.name.isdecimal() and int(p.parent.name) >= _OLDEST
    )
    return found[-1][1] if found else None


class Postgres:
    """A running server; ``fresh`` makes a database with every table in it."""

    def __init__(self, socket_dir: Path, user: str) -> None:
        self._socket_dir = socket_dir
        self._user = user
        self._numbers = count(1)
        self._sql(f"CREATE DATABASE {_TEMPLATE}")
        engine = open_engine(self.url(_TEMPLATE))
        tables.metadata.create_all(engine)
        engine.dispose()

    def url(self, database: str) -> str:
        """Where a database of this server is."""
        return f"postgresql+psycopg://{self._user}@/{database}?host={self._socket_dir}"

    def fresh(self, *, empty: bool = False) -> str:
        """The URL of a new database, with every table or ``empty``."""
        name = f"test_{next(self._numbers)}"
        self._sql(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else _TEMPLATE}")
        return self.url(name)

    def _sql(self, statement: str) -> None:
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@contextmanager
def running(bin_dir: Path) -> Iterator[Postgres]:
    """Start a server that listens on a socket only; as ``postgres`` when we are root."""
    # Not under pytest's own directory: that one is closed to the server's user.
    home = Path(tempfile.mkdtemp(prefix="duranova-pg-"))
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0:
        shutil.chown(home, user, user)

    def run(*command: str) -> None:
        subprocess.run(
            command,
            check=True,
            cwd=home,
            stdout=subprocess.DEVNULL,
            user=user if os.geteuid() == 0 else None,
            group=user if os.geteuid() == 0 else None,
        )

    pg_ctl, data = str(bin_dir / "pg_ctl"), str(home / "data")
    try:
        run(pg_ctl, "initdb", "-D", data, "-o", f"-U {user} -A trust -E UTF8 --locale=C -N")
        options = f"-k {home} {_OPTIONS}"
        run(pg_ctl, "start", "-w", "-D", data, "-l", str(home / "log"), "-o", options)
        try:
            yield Postgres(home, user)
        finally:
            run(pg_ctl, "stop", "-w", "-m", "immediate", "-D", data)
    finally:
        shutil.rmtree(home, ignore_errors=True)
