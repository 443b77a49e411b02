"""How writers of one SQLite file wait for each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from db import session as db_session
from db.session import open_engine, reading, transaction

WRITERS = 30


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/counted.db"


def counter(url: str) -> Engine:
    engine = open_engine(url)
    with transaction(engine) as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS counter (n INTEGER)"))
        session.execute(text("DELETE FROM counter"))
        session.execute(text("INSERT INTO counter VALUES (0)"))
    return engine


def add_one(engine: Engine) -> None:
    with transaction(engine) as session:
        n = session.execute(text("SELECT n FROM counter")).scalar_one()
        session.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})


def _fail(engine: Engine) -> None:
    with transaction(engine) as session:
        session.execute(text("UPDATE counter SET n = 7"))
        session.execute(text("UPDATE nobody SET n = 7"))


def count(engine: Engine) -> int:
    with reading(engine) as session:
        return int(session.execute(text("SELECT n FROM counter")).scalar_one())


def test_writers_come_one_after_another(url: str) -> None:
    engine = counter(url)
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda _: add_one(engine), range(3 * WRITERS)))
    assert count(engine) == 3 * WRITERS
    engine.dispose()


def test_a_writer_waits_in_line_and_not_at_the_file(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db_session, "BUSY_TIMEOUT_S", 0.05)
    engine = counter(url)  # SQLite itself would give up after this time
    monkeypatch.setattr(db_session, "BUSY_TIMEOUT_S", 30)
    with ThreadPoolExecutor(1) as pool:
        with transaction(engine) as session:
            session.execute(text("UPDATE counter SET n = 5"))
            next_one = pool.submit(add_one, engine)
            with pytest.raises(TimeoutError):
                next_one.result(0.5)
        next_one.result(30)
    assert count(engine) == 6
    engine.dispose()


def test_readers_do_not_wait_for_a_writer(url: str) -> None:
    engine = counter(url)
    with transaction(engine) as session:
        session.execute(text("UPDATE counter SET n = 1"))
        assert count(engine) == 0
    assert count(engine) == 1
    engine.dispose()


def test_a_writer_that_fails_lets_the_next_one_in(url: str) -> None:
    engine = counter(url)
    with pytest.raises(OperationalError, match="no such table"):
        _fail(engine)
    add_one(engine)
    assert count(engine) == 1
    engine.dispose()


def test_another_process_may_have_the_file(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_session, "BUSY_TIMEOUT_S", 0.05)
    engine, other = counter(url), open_engine(url)  # each has a line of its own, as processes have
    with transaction(other) as session:
        session.execute(text("UPDATE counter SET n = 7"))
        with pytest.raises(OperationalError, match="locked"):
            add_one(engine)
    add_one(engine)
    assert count(engine) == 8
    engine.dispose()
    other.dispose()


def test_a_wait_in_line_has_an_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_session, "BUSY_TIMEOUT_S", 0.05)
    engine = counter(url)
    with transaction(engine) as session:
        session.execute(text("UPDATE counter SET n = 0"))
        with pytest.raises(OperationalError, match="locked"):
            add_one(engine)
    add_one(engine)
    assert count(engine) == 1
    engine.dispose()
