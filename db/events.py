"""The outbox: events are written in the transaction of what they tell of, and read in the order of their ids.

An id is drawn as the last thing before its transaction commits, under a lock, so commits come in the order of
ids: a reader that has seen event 7 will never find a new event 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from sqlalchemy import BigInteger, Index, Integer, delete, event, func, insert, update
from sqlalchemy.orm import SessionTransaction
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import json_column, stamped
from domain.events import EventType
from domain.ids import new_id

EVENT_LOCK = 0x64756D65
"""PostgreSQL's advisory lock under which numbers are drawn that come in the order of commits."""
_ID = BigInteger().with_variant(Integer(), "sqlite")
_PENDING = "pending_events"
_PRUNED = "pruned"


class Event(SQLModel, table=True):
    """Something that happened to an operation, for whoever listens."""

    __tablename__ = "event"
    __table_args__ = (
        Index("event_of_project", "project_id", "id"),
        {"sqlite_autoincrement": True},  # else ids of pruned events would come again
    )
    id: int | None = Field(default=None, primary_key=True, sa_type=_ID)
    uid: str = Field(default_factory=new_id, max_length=36)
    """Unlike ``id`` never seen again, not even after a database was restored from a copy."""
    type: str = Field(max_length=64)
    """``domain.events.EventType``"""
    operation_id: str = Field(max_length=36, index=True)
    server_id: str = Field(max_length=36, index=True)
    project_id: str = Field(max_length=36)
    host: str | None = Field(default=None, max_length=255)
    time: datetime = stamped()
    data: dict[str, Any] = json_column()
    """What there is to say beside the columns; never a secret."""


_WRITTEN = [name for name in Event.model_fields if name != "id"]
_ADD = insert(Event)


class EventMark(SQLModel, table=True):
    """How far somebody has come: the id of the last event that a webhook accepted, or that was pruned."""

    __tablename__ = "event_mark"
    name: str = Field(primary_key=True, max_length=80)
    event_id: int = Field(sa_type=BigInteger)


# --- writing

_Pending = tuple[SessionTransaction | None, Event]


def emit(session: Session, told: Event) -> None:
    """Have this event written when the session commits; it is dropped if that is rolled back.

    A step that ended in the transaction that ended its operation comes first, whichever was said first.
    """
    pending: list[_Pending] = session.info.setdefault(_PENDING, [])
    place = len(pending)
    while place and told.type == EventType.STEP and _halts(pending[place - 1][1], told):
        place -= 1
    at = session.get_nested_transaction() or session.get_transaction()
    pending.insert(place, (at, told))


def _halts(earlier: Event, told: Event) -> bool:
    halt = earlier.type in (EventType.WAITING, EventType.ENDED)
    return halt and earlier.operation_id == told.operation_id


@event.listens_for(Session, "before_commit")
def _write(session: Session) -> None:
    if session.in_nested_transaction():
        return
    session.flush()  # every other lock is taken by now: nobody waits for one while holding ours
    pending = [told for _at, told in session.info.pop(_PENDING, ())]
    if not pending:
        return
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time
        session.connection().execute(select(func.pg_advisory_xact_lock(EVENT_LOCK)))
    # Not as ORM rows: nobody needs their ids, and without those one statement writes them all.
    session.connection().execute(_ADD, [_columns(told) for told in pending])


def _columns(told: Event) -> dict[str, Any]:
    return {name: getattr(told, name) for name in _WRITTEN}


@event.listens_for(Session, "after_soft_rollback")
def _forget(session: Session, rolled_back: SessionTransaction) -> None:
    pending = session.info.get(_PENDING, ())
    session.info[_PENDING] = [(at, told) for at, told in pending if not _within(at, rolled_back)]


def _within(at: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while at is not None and at is not outer:
        at = at.parent
    return at is outer


@event.listens_for(Session, "after_transaction_end")
def _end(session: Session, ended: SessionTransaction) -> None:
    if ended.parent is None:
        session.info.pop(_PENDING, None)


# --- reading


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events somebody asks for; None does not choose."""

    project_id: str | None = None
    server_id: str | None = None
    operation_id: str | None = None
    types: frozenset[str] | None = None

    def takes(self, told: Event) -> bool:
        """Whether this is one of them."""
        return (
            self.project_id in (None, told.project_id)
            and self.server_id in (None, told.server_id)
            and self.operation_id in (None, told.operation_id)
            and (self.types is None or told.type in self.types)
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in order, and how far that is: all that were wanted up to ``position`` are in it."""

    events: list[Event]
    position: int


EVERYTHING = Wanted()


def read_events(session: Session, after: int, wanted: Wanted, limit: int) -> Batch:
    """The next wanted events behind the one with id ``after``, oldest first, at most ``limit``."""
    newest = session.exec(select(func.max(Event.id))).one() or after
    statement = select(Event).where(col(Event.id) > after, col(Event.id) <= newest)
    for column in ("project_id", "server_id", "operation_id"):
        if (value := getattr(wanted, column)) is not None:
            statement = statement.where(getattr(Event, column) == value)
    if wanted.types is not None:
        statement = statement.where(col(Event.type).in_(wanted.types))
    events = list(session.exec(statement.order_by(col(Event.id)).limit(limit)))
    full = len(events) == limit
    return Batch(events, events[-1].id or 0 if full else max(after, newest))


def event_after(session: Session, event_id: int) -> Event | None:
    """The oldest event behind this one."""
    later = select(Event).where(col(Event.id) > event_id).order_by(col(Event.id))
    return session.exec(later.limit(1)).first()


def newest_event(session: Session) -> int:
    """The id of the newest event there was; 0 before the first."""
    newest = session.exec(select(func.max(Event.id))).one()
    return newest or pruned_up_to(session)


def pruned_up_to(session: Session) -> int:
    """The id of the newest event that is no longer kept; 0 when all are."""
    return get_mark(session, _PRUNED) or 0


def prune_events(session: Session, before: datetime, limit: int = 10_000) -> int:
    """Delete the oldest events up to the first that is not older than ``before``, at most ``limit``.

    Returns how many; ``limit`` of them means that there may be more.
    """
    oldest = session.exec(select(Event.id, Event.time).order_by(col(Event.id)).limit(limit))
    old = [number for number, _time in takewhile(lambda row: row[1] < before, oldest)]
    if old and old[-1] is not None:
        session.exec(delete(Event).where(col(Event.id) <= old[-1]))
        set_mark(session, _PRUNED, old[-1])
    return len(old)


# --- marks


def webhook_mark(name: str) -> str:
    """The mark of a webhook: the last event that it accepted."""
    return f"webhook:{name}"


def get_mark(session: Session, name: str) -> int | None:
    """The id at this mark; None when it was never set."""
    return session.exec(select(EventMark.event_id).where(EventMark.name == name)).first()


def set_mark(session: Session, name: str, event_id: int) -> None:
    """Move a mark forward, or make it; it never goes back."""
    if session.get(EventMark, name) is None:
        session.add(EventMark(name=name, event_id=event_id))
        session.flush()
    here = (col(EventMark.name) == name) & (col(EventMark.event_id) < event_id)
    session.exec(update(EventMark).where(here).values(event_id=event_id))


# --- as others see it


def as_cloud_event(told: Event, source: str, *, for_admin: bool) -> str:
    """The event in the JSON format of CloudEvents 1.0.

    Who is no admin does not learn on which host it was, nor a step's details, which may name hosts.
    """
    data = {**told.data, "operation_id": told.operation_id, "server_id": told.server_id}
    data["project_id"] = told.project_id
    if for_admin:
        data["host"] = told.host
    elif "step" in data:
        data["step"] = {k: v for k, v in data["step"].items() if k != "details"}
    attributes = {
        "id": told.uid,
        "source": source,
        "type": told.type,
        "time": told.time,
        "subject": told.server_id,
        "datacontenttype": "application/json",
        "partitionkey": told.server_id,
        "sequence": f"{told.id:020}",
        "operationid": told.operation_id,
        "projectid": told.project_id,
    }
    return JSONFormat().write(CloudEvent(attributes, data)).decode()
