"""Engine, sessions and the one place where transactions begin and end."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import re2
from sqlalchemy import (
    DateTime,
    Dialect,
    Engine,
    ExceptionContext,
    Executable,
    TypeDecorator,
    event,
    make_url,
)
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import Session, create_engine

from domain.errors import Conflict

BUSY_TIMEOUT_S = 30
_IMMEDIATE = "duranova_immediate"
_LOCKED = "database is locked"
"""SQLite's own words."""


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware UTC in Python, without a zone in the database."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


def now() -> datetime:
    """This instant, aware UTC."""
    return datetime.now(UTC)


def open_engine(url: str) -> Engine:
    """An engine for this database: SQLite in WAL mode, or PostgreSQL. Its errors show no values."""
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_engine(
            url, pool_size=10, max_overflow=30, pool_pre_ping=True, hide_parameters=True
        )
        event.listen(engine, "handle_error", partial(_note_loss, engine))
        return engine
    engine = create_engine(
        url,
        connect_args={
            "check_same_thread": False,
            "timeout": BUSY_TIMEOUT_S,
            "factory": _waiting_in_line(),
        },
        pool_size=40,
        hide_parameters=True,
    )
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


_LOSSES: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()


def _note_loss(engine: Engine, context: ExceptionContext) -> None:
    if context.is_disconnect:
        _LOSSES[engine] = _LOSSES.get(engine, 0) + 1


def losses(engine: Engine) -> int:
    """How often a connection to this database was lost: what was read before may not be committed in the
    one that answers now, a standby that took over."""
    return _LOSSES.get(engine, 0)


def _waiting_in_line() -> type[sqlite3.Connection]:
    """Connections to one SQLite file whose write transactions wait for each other here.

    SQLite itself would have them look again and again, with longer and longer pauses between: whoever has
    waited longest then waits longest yet, and nobody learns that the file has become free.
    """
    line = threading.Lock()

    class Waiting(sqlite3.Connection):
        _mine = False

        def wait(self) -> bool:
            """Before a write transaction; False when it is nobody's turn for too long."""
            self._mine = line.acquire(timeout=BUSY_TIMEOUT_S)
            return self._mine

        def commit(self) -> None:
            super().commit()
            self._leave()

        def rollback(self) -> None:
            try:
                super().rollback()
            finally:
                self._leave()

        def close(self) -> None:
            try:
                super().close()
            finally:
                self._leave()

        def _leave(self) -> None:
            if self._mine:
                self._mine = False
                line.release()

    return Waiting


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves, see _sqlite_begin
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.create_function("regexp", 2, _regexp, deterministic=True)


def _regexp(pattern: str, text: str | None) -> bool:
    # The driver's own uses Python's engine, which some patterns keep busy for ever; RE2 is linear.
    return text is not None and compile_pattern(pattern).search(text) is not None


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> Any:
    """A user's regular expression, matched in linear time; ``re2.error`` if it is none."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    return re2.compile(pattern, options)


def _sqlite_begin(connection: Any) -> None:
    # A read that later writes would fail at once with "database is locked" instead of waiting, so a
    # transaction that may write takes the write lock from its start.
    if connection.get_execution_options().get(_IMMEDIATE, True):
        if not connection.connection.wait():
            raise OperationalError("BEGIN IMMEDIATE", None, sqlite3.OperationalError(_LOCKED))
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:  # never waits and never fails, so it needs nothing of what SQLAlchemy puts around it
        connection.connection.execute("BEGIN")


def write_session(engine: Engine) -> Session:
    """A session that may write; the caller commits."""
    return Session(engine, expire_on_commit=False)


def read_session(engine: Engine) -> Session:
    """A session that only reads; it never waits for a writer."""
    return Session(_reader(engine), expire_on_commit=False)


@lru_cache(maxsize=16)  # every request asks, and making one takes longer than many a query
def _reader(engine: Engine) -> Engine:
    return engine.execution_options(**{_IMMEDIATE: False})


def fetch(session: Session, statement: Executable, **given: Any) -> Sequence[Any]:
    """The rows of a statement that its module made once, run past the ORM: for what every request asks.
    To build a statement anew and to make entities takes SQLAlchemy ten times as long as a small query
    takes the database. A list goes to a ``bindparam(…, expanding=True)``. Where entities are wanted,
    ``session.exec(STATEMENT, params=…)`` spares the building alone.
    """
    session.flush()
    return session.connection().execute(statement, given).all()


def change(session: Session, statement: Executable, **given: Any) -> None:
    """The same for a statement that changes rows. Of those, what the session holds stays as it was read."""
    session.flush()
    session.connection().execute(statement, given)


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """One write transaction: commits at the end, rolls back on any error."""
    with write_session(engine) as session, session.begin():
        yield session


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """One read transaction."""
    with read_session(engine) as session:
        yield session


@contextmanager
def snapshot(engine: Engine) -> Iterator[Session]:
    """One read transaction in which all queries see the same instant."""
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
    with read_session(
        engine
    ) as session:  # on SQLite a transaction sees the instant of its first query
        yield session


def insert_unique(session: Session, row: Any, clash: str) -> None:
    """Add a row and flush; Conflict with the message ``clash`` when another one is in its place."""
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        session.rollback()
        raise Conflict(clash) from error
