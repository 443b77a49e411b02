"""Flavors, their extra specs and their access list."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from db.columns import id_column, json_column, stamped


class Flavor(SQLModel, table=True):
    """A size of server."""

    __tablename__ = "flavor"
    id: str = id_column()
    """The row's own id; servers keep a copy of the flavor, not a reference."""
    flavor_id: str = Field(max_length=255, unique=True)
    """What the API calls the id."""
    name: str = Field(max_length=255, unique=True)
    description: str | None = None
    vcpus: int
    ram_mb: int
    disk_gb: int
    ephemeral_gb: int = 0
    swap_mb: int = 0
    rxtx_factor: float = 1.0
    is_public: bool = True
    disabled: bool = False
    extra_specs: dict[str, str] = json_column()
    created_at: datetime = stamped()


class FlavorAccess(SQLModel, table=True):
    """A project that may use a non-public flavor."""

    __tablename__ = "flavor_access"
    __table_args__ = (UniqueConstraint("flavor_row_id", "project_id"),)
    id: str = id_column()
    flavor_row_id: str = Field(foreign_key="flavor.id", max_length=36, ondelete="CASCADE")
    project_id: str = Field(max_length=36)
