"""Answers kept under the key a client gave, so that a repeated create is told the same, not done twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from pydantic import BaseModel
from sqlmodel import Field, Session, SQLModel, col, delete

from db.columns import stamped
from db.session import insert_unique, now
from domain.errors import BadRequest, Conflict

KEPT = timedelta(hours=24)


class Seal(Protocol):
    """What keeps the answers unreadable at rest (``runtime.sealing.Sealer``)."""

    def seal(self, data: bytes) -> str: ...

    def unseal(self, sealed: str) -> bytes: ...


class IdempotencyKey(SQLModel, table=True):
    """One accepted request of one project."""

    __tablename__ = "idempotency_key"
    project_id: str = Field(max_length=36, primary_key=True)
    key: str = Field(max_length=255, primary_key=True)
    fingerprint: str = Field(max_length=64)
    """SHA-256 of the request's body."""
    answer_sealed: str
    """The response body; it may hold a password."""
    created_at: datetime = stamped()


@dataclass(frozen=True, slots=True)
class Idempotent:
    """A request that names a key, or none."""

    project_id: str
    key: str | None
    fingerprint: str

    @classmethod
    def of(cls, key: str | None, project_id: str, body: BaseModel) -> Idempotent:
        """BadRequest for a key that is empty or longer than 255 characters."""
        if key is not None and not 1 <= len(key) <= 255:
            raise BadRequest("Idempotency-Key must have 1 to 255 characters")
        print_ = hashlib.sha256(body.model_dump_json().encode()).hexdigest() if key else ""
        return cls(project_id, key, print_)


def find_answer(session: Session, sealer: Seal, asked: Idempotent) -> str | None:
    """The answer already given to this request; Conflict when the key was used for another one."""
    if asked.key is None:
        return None
    row = session.get(IdempotencyKey, (asked.project_id, asked.key))
    if row is None or row.created_at < now() - KEPT:
        return None
    if row.fingerprint != asked.fingerprint:
        raise Conflict("The Idempotency-Key was used before, for another request.")
    return sealer.unseal(row.answer_sealed).decode()


def keep_answer(session: Session, sealer: Seal, asked: Idempotent, answer: str) -> None:
    """Remember the answer for 24 hours, in the transaction of what it answers; Conflict when the same
    request is being carried out right now."""
    if asked.key is None:
        return
    old = col(IdempotencyKey.created_at) < now() - KEPT
    session.exec(delete(IdempotencyKey).where(old))
    row = IdempotencyKey(
        project_id=asked.project_id,
        key=asked.key,
        fingerprint=asked.fingerprint,
        answer_sealed=sealer.seal(answer.encode()),
    )
    insert_unique(session, row, "A request with this Idempotency-Key is being carried out.")
