"""Keypairs of users."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import stamped
from db.paging import keyset
from domain.errors import BadRequest, NotFound


class Keypair(SQLModel, table=True):
    """A public key under a name; private keys are never kept."""

    __tablename__ = "keypair"
    __table_args__ = (UniqueConstraint("user_id", "name"),)
    id: int | None = Field(default=None, primary_key=True)
    user_id: str = Field(max_length=36, index=True)
    name: str = Field(max_length=255)
    type: str = Field(default="ssh", max_length=8)
    public_key: str
    fingerprint: str = Field(max_length=255)
    created_at: datetime = stamped()


def find_keypair(session: Session, user_id: str, name: str) -> Keypair | None:
    """A user's keypair by name, or None."""
    return session.exec(
        select(Keypair).where(Keypair.user_id == user_id, Keypair.name == name)
    ).first()


def get_keypair(session: Session, user_id: str, name: str) -> Keypair:
    """A user's keypair by name; NotFound."""
    keypair = find_keypair(session, user_id, name)
    if keypair is None:
        raise NotFound(f"Keypair {name} not found for user {user_id}")
    return keypair


def list_keypairs(
    session: Session, user_id: str, limit: int | None = None, marker: str | None = None
) -> list[Keypair]:
    """A user's keypairs by name: all, or a page behind the keypair named ``marker``.

    BadRequest when there is no such keypair.
    """
    statement = select(Keypair).where(Keypair.user_id == user_id)
    if limit is None:
        return list(session.exec(statement.order_by(col(Keypair.name))))
    if marker is not None and find_keypair(session, user_id, marker) is None:
        raise BadRequest(f"Marker {marker} could not be found.")
    after = None if marker is None else (marker,)
    page = keyset(statement, [(col(Keypair.name), False)], after, limit)
    return list(session.scalars(page))
