"""Limits that differ from the defaults; usage is always counted from the rows themselves."""

from __future__ import annotations

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from db.columns import id_column


class QuotaLimit(SQLModel, table=True):
    """One project's (or one user's in a project) limit for one resource; -1 is unlimited."""

    __tablename__ = "quota_limit"
    __table_args__ = (UniqueConstraint("project_id", "user_id", "resource"),)
    id: str = id_column()
    project_id: str = Field(max_length=36, index=True)
    """A project's id, or ``class:default`` for the default class."""
    user_id: str = Field(default="", max_length=36)
    resource: str = Field(max_length=64)
    """Nova's names: instances, cores, ram, key_pairs, server_groups, server_group_members,
    metadata_items; Neutron's: network, subnet, port, security_group, security_group_rule."""
    limit: int
