"""Hosts with what they report, and claims: the one truth about what is used where."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlmodel import Field, SQLModel

from db.columns import id_column, instant, json_column, stamped


class Host(SQLModel, table=True):
    """A hypervisor: one compute service and one hypervisor of the API."""

    __tablename__ = "host"
    name: str = Field(primary_key=True, max_length=255)
    uuid: str = Field(max_length=36, unique=True)
    """The hypervisor's id in the API."""
    service_id: str = Field(max_length=36, unique=True)
    """The compute service's id in the API."""
    availability_zone: str | None = Field(default=None, max_length=255)
    """As configured at the host; an aggregate's zone wins."""
    epoch: str = Field(default="", max_length=36)
    """Changes with each start of the host's worker."""
    disabled: bool = False
    disabled_reason: str | None = None
    forced_down: bool = False
    reported_at: datetime | None = instant()
    vcpus: int = 0
    ram_mb: int = 0
    disk_gb: int = 0
    hypervisor_type: str = ""
    hypervisor_version: int = 0
    hypervisor_hostname: str = ""
    cpu_arch: str = "x86_64"
    cpu_model: str = ""
    host_ip: str = ""
    capabilities: list[str] = json_column(list)
    metrics: dict[str, Any] = json_column()
    created_at: datetime = stamped()
    updated_at: datetime = stamped()


class Claim(SQLModel, table=True):
    """What one server takes of one host. Used = the sum over a host's claims; nothing else is counted."""

    __tablename__ = "claim"
    id: str = id_column()
    server_id: str = Field(foreign_key="server.id", max_length=36, unique=True)
    host: str = Field(foreign_key="host.name", max_length=255, index=True)
    operation_id: str = Field(max_length=36)
    epoch: int
    vcpus: int
    ram_mb: int
    disk_gb: int
    group_id: str | None = Field(default=None, max_length=36, index=True)
    building: bool = True
    """Counts as an IO operation of the host until the server is active."""
    created_at: datetime = stamped()
