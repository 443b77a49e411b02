"""Networks, subnets, ports and security groups (Neutron's model, IPv4)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from db.columns import id_column, json_column, stamped


class Network(SQLModel, table=True):
    """A layer-2 segment of one project, possibly shared."""

    __tablename__ = "network"
    id: str = id_column()
    project_id: str = Field(max_length=36, index=True)
    name: str = Field(default="", max_length=255)
    description: str = ""
    admin_state_up: bool = True
    shared: bool = False
    segment: int = Field(unique=True)
    """VNI, from 1000 up."""
    mtu: int = 1450
    port_security_enabled: bool = True
    tags: list[str] = json_column(list)
    created_at: datetime = stamped()
    updated_at: datetime = stamped()
    revision: int = 1


class Subnet(SQLModel, table=True):
    """An address range of a network."""

    __tablename__ = "subnet"
    id: str = id_column()
    network_id: str = Field(foreign_key="network.id", max_length=36, index=True)
    project_id: str = Field(max_length=36, index=True)
    name: str = Field(default="", max_length=255)
    description: str = ""
    cidr: str = Field(max_length=64)
    gateway_ip: str | None = Field(default=None, max_length=64)
    enable_dhcp: bool = True
    allocation_pools: list[dict[str, str]] = json_column(list)
    """[{"start": ip, "end": ip}]"""
    dns_nameservers: list[str] = json_column(list)
    host_routes: list[dict[str, str]] = json_column(list)
    """[{"destination": cidr, "nexthop": ip}]"""
    tags: list[str] = json_column(list)
    created_at: datetime = stamped()
    updated_at: datetime = stamped()
    revision: int = 1


class Port(SQLModel, table=True):
    """A network card's place on a network."""

    __tablename__ = "port"
    __table_args__ = (
        UniqueConstraint("network_id", "mac"),
        # These cover what the audit holds against servers, networks and groups.
        Index("port_of_device", "device_id", "project_id", "host", "made_by_server"),
        Index("port_on_network", "network_id", "project_id"),
        Index("port_project", "id", "project_id"),
        Index("port_network", "id", "network_id"),
    )
    id: str = id_column()
    network_id: str = Field(foreign_key="network.id", max_length=36)
    project_id: str = Field(max_length=36, index=True)
    name: str = Field(default="", max_length=255)
    description: str = ""
    mac: str = Field(max_length=32)
    admin_state_up: bool = True
    device_id: str = Field(default="", max_length=255)
    """The server's id, or empty."""
    device_owner: str = Field(default="", max_length=255)
    """``compute:<az>`` for a server's port."""
    host: str = Field(default="", max_length=255)
    """binding:host_id"""
    status: str = Field(default="DOWN", max_length=16)
    port_security_enabled: bool = True
    allowed_address_pairs: list[dict[str, str]] = json_column(list)
    vnic_type: str = Field(default="normal", max_length=16)
    made_by_server: bool = False
    """Made at server create, so it goes with the server; a port the user made stays."""
    tags: list[str] = json_column(list)
    extra: dict[str, Any] = json_column()
    created_at: datetime = stamped()
    updated_at: datetime = stamped()
    revision: int = 1


class FixedIp(SQLModel, table=True):
    """One address of a port; unique in its subnet, so the database refuses a double owner."""

    __tablename__ = "fixed_ip"
    __table_args__ = (
        UniqueConstraint("subnet_id", "ip"),
        Index("fixed_ip_of_port", "port_id", "subnet_id"),
    )
    id: str = id_column()
    port_id: str = Field(foreign_key="port.id", max_length=36, ondelete="CASCADE")
    subnet_id: str = Field(foreign_key="subnet.id", max_length=36)
    ip: str = Field(max_length=64, index=True)


class SecurityGroup(SQLModel, table=True):
    """A named set of allow rules."""

    __tablename__ = "security_group"
    id: str = id_column()
    project_id: str = Field(max_length=36, index=True)
    name: str = Field(max_length=255)
    description: str = ""
    stateful: bool = True
    tags: list[str] = json_column(list)
    created_at: datetime = stamped()
    updated_at: datetime = stamped()
    revision: int = 1


class SecurityGroupRule(SQLModel, table=True):
    """One allow rule."""

    __tablename__ = "security_group_rule"
    id: str = id_column()
    security_group_id: str = Field(
        foreign_key="security_group.id", max_length=36, index=True, ondelete="CASCADE"
    )
    project_id: str = Field(max_length=36)
    direction: str = Field(max_length=8)
    ethertype: str = Field(default="IPv4", max_length=8)
    protocol: str | None = Field(default=None, max_length=40)
    port_range_min: int | None = None
    port_range_max: int | None = None
    remote_ip_prefix: str | None = Field(default=None, max_length=64)
    remote_group_id: str | None = Field(
        default=None, foreign_key="security_group.id", max_length=36, ondelete="CASCADE"
    )
    description: str = ""
    created_at: datetime = stamped()
    revision: int = 1


class PortSecurityGroup(SQLModel, table=True):
    """Membership of a port in a group."""

    __tablename__ = "port_security_group"
    port_id: str = Field(foreign_key="port.id", max_length=36, primary_key=True, ondelete="CASCADE")
    security_group_id: str = Field(
        foreign_key="security_group.id", max_length=36, primary_key=True, index=True
    )
