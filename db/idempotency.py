"""Keys that clients give their requests, each with the answer, so that a repeated request is told the same
and not done twice. A key's row is the first thing its request writes and ends with it: it is there exactly
when the request's effect is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel, col, delete, select, update

from db.session import UtcDateTime, now
from domain.errors import DuranovaError, Kind

KEPT = timedelta(hours=24)


class IdempotencyKey(SQLModel, table=True):
    """One request that was carried out under a key."""

    __tablename__ = "idempotency_key"
    scope: str = Field(max_length=48, primary_key=True)
    """What the caller's token was for: a project's id, ``domain:<id>``, ``system``, or nothing."""
    user_id: str = Field(max_length=36, primary_key=True)
    key: str = Field(max_length=255, primary_key=True)
    fingerprint: str = Field(max_length=64)
    """Of all that makes the request this one and not another."""
    request_id: str = Field(max_length=64)
    answer_sealed: str | None = None
    """The answer; it may hold a password. None while a request that has committed already still works on
    its answer, or was killed at that."""
    created_at: datetime = Field(
        default_factory=now, sa_type=UtcDateTime, nullable=False, index=True
    )


@dataclass(frozen=True, slots=True)
class Keyed:
    """A request under a key."""

    scope: str
    user_id: str
    key: str
    fingerprint: str
    request_id: str


class Taken(DuranovaError):
    """Another request has used the key."""

    kind = Kind.CONFLICT

    def __init__(self) -> None:
        super().__init__("The Idempotency-Key is in use by another request; try again.")


def claim_key(connection: Connection, asked: Keyed) -> None:
    """Make the key this request's for as long as its transaction, and for good once that commits.

    Waits for another transaction that is using the key; Taken when that, or an earlier one, committed.
    """
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    new = asdict(asked) | {"answer_sealed": None, "created_at": now()}
    statement = (
        dialect.insert(IdempotencyKey)
        .values(new)
        .on_conflict_do_update(
            index_elements=["scope", "user_id", "key"],
            set_=new,
            where=col(IdempotencyKey.created_at) <= now() - KEPT,
        )
        .returning(col(IdempotencyKey.request_id))
    )
    if connection.execute(statement).first() is None:
        row = connection.execute(select(IdempotencyKey.request_id).where(*_is(asked))).first()
        if row is None or row.request_id != asked.request_id:
            raise Taken


def find_key(session: Session, asked: Keyed) -> IdempotencyKey | None:
    """Who used this key in the last 24 hours, if anybody did."""
    young = col(IdempotencyKey.created_at) > now() - KEPT
    return session.exec(select(IdempotencyKey).where(*_is(asked), young)).first()


def keep_answer(session: Session, asked: Keyed, answer_sealed: str) -> None:
    """Write the answer to the key that this request has claimed."""
    mine = col(IdempotencyKey.request_id) == asked.request_id
    session.exec(
        update(IdempotencyKey).where(*_is(asked), mine).values(answer_sealed=answer_sealed)
    )


def prune_keys(session: Session) -> None:
    """Forget the keys that are older than 24 hours."""
    session.exec(delete(IdempotencyKey).where(col(IdempotencyKey.created_at) <= now() - KEPT))


def _is(asked: Keyed) -> tuple[Any, ...]:
    return (
        col(IdempotencyKey.scope) == asked.scope,
        col(IdempotencyKey.user_id) == asked.user_id,
        col(IdempotencyKey.key) == asked.key,
    )
