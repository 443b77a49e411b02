"""Migrations on both databases: up, nothing left to do, down, two programs at once, refusals."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, event, inspect, text

from db import schema, tables
from db.host_changes import AGGREGATES, read_changes
from db.hosts import Host, report_host
from db.session import now, open_engine, reading, transaction
from domain.guest import Inventory
from tests.postgres import Postgres


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any table."""
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        return server.fresh(empty=True)
    return f"sqlite:///{tmp_path}/empty 100%.db"


def tables_in(url: str) -> set[str]:
    engine = open_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_an_upgraded_database_is_what_the_tables_say(empty_url: str) -> None:
    schema.upgrade(empty_url)
    engine = open_engine(empty_url)
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, tables.metadata) == []
    finally:
        engine.dispose()
    assert tables_in(empty_url) == set(tables.metadata.tables) | {"alembic_version"}


def triggers_in(url: str) -> list[tuple[str, ...]]:
    """Every trigger with its text, and the functions they call."""
    engine = open_engine(url)
    queries = ["SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"]
    if engine.dialect.name == "postgresql":
        queries = [
            "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
            "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        ]
    with engine.connect() as connection:
        found = [tuple(row) for query in queries for row in connection.execute(text(query))]
    engine.dispose()
    return found


def test_the_triggers_of_the_migrations_are_those_of_the_tables(empty_url: str) -> None:
    schema.upgrade(empty_url)
    migrated = triggers_in(empty_url)
    schema.downgrade(empty_url, "base")
    assert triggers_in(empty_url) == []
    engine = open_engine(empty_url)
    tables.metadata.create_all(engine)
    engine.dispose()
    assert triggers_in(empty_url) == migrated
    assert migrated


def test_an_upgrade_counts_the_hosts_that_are_there_as_changed(empty_url: str) -> None:
    schema.upgrade(empty_url)
    schema.downgrade(empty_url, "0007")
    engine = open_engine(empty_url)
    host = Host(name="one", uuid="u", service_id="s")
    with transaction(engine) as session:
        session.add(host)
    schema.upgrade(empty_url)
    with reading(engine) as session:
        assert {row.changed for row in read_changes(session, -1)} == {"one", AGGREGATES}
    engine.dispose()


def test_upgrading_twice_is_upgrading_once(empty_url: str) -> None:
    schema.upgrade(empty_url)
    schema.upgrade(empty_url)
    assert schema.is_compatible(empty_url)


def test_two_programs_may_upgrade_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        processes = [pool.submit(_upgrade_in_a_process, empty_url) for _ in range(2)]
        assert [p.result() for p in processes] == [0, 0]
    assert schema.is_compatible(empty_url)


def _upgrade_in_a_process(url: str) -> int:
    # alembic's context is one per process
    program = "import sys; from db import schema; schema.upgrade(sys.argv[1])"
    root = Path(__file__).resolve().parents[2]
    return subprocess.run([sys.executable, "-c", program, url], cwd=root, check=False).returncode


def test_downgrading_leaves_no_table_behind(empty_url: str) -> None:
    schema.upgrade(empty_url)
    schema.downgrade(empty_url, "base")
    assert tables_in(empty_url) <= {"alembic_version"}
    assert schema.current(empty_url) is None
    schema.upgrade(empty_url)
    assert schema.is_compatible(empty_url)


def test_an_empty_database_is_not_compatible(empty_url: str) -> None:
    assert schema.current(empty_url) is None
    assert not schema.is_compatible(empty_url)


def test_a_database_of_a_newer_program_is_refused(empty_url: str) -> None:
    schema.upgrade(empty_url)
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    assert not schema.is_compatible(empty_url)
    with pytest.raises(CommandError):
        schema.upgrade(empty_url)


def test_a_failed_upgrade_changes_nothing(empty_url: str) -> None:
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE server (id VARCHAR(1))"))  # in the way
    engine.dispose()
    with pytest.raises(Exception, match="server"):
        schema.upgrade(empty_url)
    assert tables_in(empty_url) == {"server"}


def test_a_host_that_first_reports_during_an_upgrade_is_seen(empty_url: str) -> None:
    if not empty_url.startswith("postgresql"):
        pytest.skip("SQLite has one writer at a time")
    schema.upgrade(empty_url, "0007")
    engine, said = open_engine(empty_url), False
    inventory = Inventory(4, 4608, 100, "QEMU", 9000000, "late.example", uuid="late")

    def report(*_statement: object) -> None:
        with transaction(engine) as session:
            report_host(session, "late", inventory, "e", now(), None)

    def look(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        nonlocal said
        if "CREATE FUNCTION note_host_change" in statement and not said:
            said = True
            report()

    event.listen(Engine, "before_cursor_execute", look)
    try:
        schema.upgrade(empty_url)
    finally:
        event.remove(Engine, "before_cursor_execute", look)
    report()  # without news
    assert said
    with reading(engine) as session:
        assert {row.changed for row in read_changes(session, -1)} == {"late", AGGREGATES}
    engine.dispose()
