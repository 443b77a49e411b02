"""Server groups (affinity rules) and host aggregates."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from db.columns import id_column, instant, json_column, stamped
from domain.ids import new_id


class ServerGroup(SQLModel, table=True):
    """Servers that want to be, or not to be, together. Members are the servers' ``group_id``."""

    __tablename__ = "server_group"
    id: str = id_column()
    project_id: str = Field(max_length=36, index=True)
    user_id: str = Field(max_length=36)
    name: str = Field(max_length=255)
    policy: str = Field(max_length=32)
    """affinity, anti-affinity, soft-affinity, soft-anti-affinity."""
    max_server_per_host: int = 1
    """anti-affinity only."""
    created_at: datetime = stamped()


class Aggregate(SQLModel, table=True):
    """A set of hosts with metadata; ``availability_zone`` in the metadata makes it a zone."""

    __tablename__ = "aggregate"
    id: int | None = Field(default=None, primary_key=True)
    uuid: str = Field(default_factory=new_id, max_length=36, unique=True)
    name: str = Field(max_length=255, unique=True)
    metadata_: dict[str, str] = json_column()
    created_at: datetime = stamped()
    updated_at: datetime | None = instant()


class AggregateHost(SQLModel, table=True):
    """Membership of a host in an aggregate."""

    __tablename__ = "aggregate_host"
    __table_args__ = (UniqueConstraint("aggregate_id", "host"),)
    id: str = id_column()
    aggregate_id: int = Field(foreign_key="aggregate.id", ondelete="CASCADE")
    host: str = Field(max_length=255, index=True)
