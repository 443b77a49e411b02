"""What hosts report is kept, written only when it is new, and held against where the record wants servers."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlmodel import Session

from db.hosts import Host
from db.session import now, reading, transaction
from db.sightings import HostSighting, find_orphans, note_sighting
from domain.guest import GuestReport
from domain.ids import new_id
from tests.record import Record


@pytest.fixture
def record(engine: Engine) -> Record:
    made = Record(engine)
    made.host("one", "two")
    return made


def written(engine: Engine, *guests: GuestReport, residue: list[str] | None = None) -> int:
    """How many statements that write a report of host ``one`` causes."""
    seen: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if not statement.startswith(("SELECT", "BEGIN")):
            seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        with transaction(engine) as session:
            note_sighting(session, "one", guests, residue, now())
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return len(seen)


def test_a_report_that_says_nothing_new_writes_nothing(engine: Engine, record: Record) -> None:
    guest = GuestReport(record.server(), 1, 1)
    assert written(engine, guest) == 1
    assert written(engine, guest) == 0
    assert written(engine, guest, residue=[]) == 0
    assert written(engine, GuestReport(guest.server_id, 4, 1)) == 1


def test_residue_is_remembered_until_the_host_looks_again(engine: Engine, record: Record) -> None:
    def residue() -> list[str]:
        with reading(engine) as session:
            return session.get_one(HostSighting, "one").residue

    written(engine, residue=["b", "a"])
    written(engine)
    assert residue() == ["a", "b"]
    written(engine, residue=[])
    assert residue() == []


def test_a_host_that_is_deleted_takes_its_reports_along(engine: Engine, record: Record) -> None:
    with transaction(engine) as session:
        session.delete(session.get_one(Host, "one"))
    with reading(engine) as session:
        assert session.get(HostSighting, "one") is None


def test_orphans_are_what_the_record_wants_nowhere_or_elsewhere(
    engine: Engine, record: Record
) -> None:
    home, away, gone, unknown = record.server(), record.server("two"), record.server(), new_id()
    busy = record.server("two")
    record.operation(busy)
    record.bury(gone)
    guests = {server_id: [1, 1] for server_id in (home, away, gone, unknown, busy)}

    def orphans(session: Session) -> dict[str, str]:
        return {
            o.server_id: o.reason
            for o in find_orphans(session, "one", guests, ["rules:tap0", busy])
        }

    with reading(engine) as session:
        assert orphans(session) == {
            away: "the server is on two",
            gone: "the server is deleted",
            unknown: "the record does not know the server",
            "rules:tap0": "the record does not know the server",
        }
