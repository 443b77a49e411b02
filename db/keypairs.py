"""Keypairs of users."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from db.columns import stamped


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
