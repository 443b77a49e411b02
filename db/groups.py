"""Server groups (affinity rules) and host aggregates."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import UniqueConstraint, delete, func, update
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import id_column, instant, json_column, stamped
from db.hosts import Claim, Host
from db.servers import Server
from domain.errors import NotFound
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
    rules: dict[str, int] = json_column()
    """The rules as they were asked for, which the API shows."""
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

    @property
    def zone(self) -> str | None:
        """The availability zone this aggregate makes of its hosts."""
        return self.metadata_.get("availability_zone")


class AggregateHost(SQLModel, table=True):
    """Membership of a host in an aggregate."""

    __tablename__ = "aggregate_host"
    __table_args__ = (UniqueConstraint("aggregate_id", "host"),)
    id: str = id_column()
    aggregate_id: int = Field(foreign_key="aggregate.id", ondelete="CASCADE")
    host: str = Field(max_length=255, index=True)


# --- server groups


def get_server_group(session: Session, group_id: str, project_id: str | None) -> ServerGroup:
    """A group of this project, or of any with None; NotFound."""
    group = session.get(ServerGroup, group_id)
    if group is None or project_id not in (None, group.project_id):
        raise NotFound(f"Instance group {group_id} could not be found.")
    return group


def list_server_groups(
    session: Session, project_id: str | None, offset: int, limit: int
) -> list[ServerGroup]:
    """The groups of a project, or all with None, oldest first."""
    statement = select(ServerGroup).order_by(col(ServerGroup.created_at), col(ServerGroup.id))
    if project_id is not None:
        statement = statement.where(ServerGroup.project_id == project_id)
    return list(session.exec(statement.offset(offset).limit(limit)))


def members_of(session: Session, group_ids: Collection[str]) -> dict[str, list[str]]:
    """Group id → ids of its servers, oldest first, deleted ones left out."""
    members: dict[str, list[str]] = {group_id: [] for group_id in group_ids}
    rows = session.exec(
        select(Server.group_id, Server.id)
        .where(col(Server.group_id).in_(group_ids), col(Server.deleted_at).is_(None))
        .order_by(col(Server.created_at), col(Server.id))
    )
    for group_id, server_id in rows:
        members[str(group_id)].append(server_id)
    return members


def delete_server_group(session: Session, group: ServerGroup) -> None:
    """Delete the group; its servers live on without one."""
    for owner in (Server, Claim):
        column = col(owner.group_id)
        session.exec(update(owner).where(column == group.id).values(group_id=None))
    session.delete(group)


# --- aggregates


def get_aggregate(session: Session, aggregate_id: int) -> Aggregate:
    """An aggregate by number; NotFound."""
    aggregate = session.get(Aggregate, aggregate_id)
    if aggregate is None:
        raise NotFound(f"Aggregate {aggregate_id} could not be found.")
    return aggregate


def list_aggregates(session: Session) -> list[Aggregate]:
    """Every aggregate, oldest first."""
    return list(session.exec(select(Aggregate).order_by(col(Aggregate.id))))


def hosts_of_aggregates(session: Session, ids: Collection[int]) -> dict[int, list[str]]:
    """Aggregate → its hosts by name."""
    hosts: dict[int, list[str]] = {number: [] for number in ids}
    rows = session.exec(
        select(AggregateHost.aggregate_id, AggregateHost.host)
        .where(col(AggregateHost.aggregate_id).in_(ids))
        .order_by(col(AggregateHost.host))
    )
    for number, host in rows:
        hosts[number].append(host)
    return hosts


def zones_of(session: Session, hosts: Collection[str], but: int) -> dict[str, set[str]]:
    """Host → the zones that aggregates other than ``but`` put it in; without those in none."""
    rows = session.exec(
        select(AggregateHost.host, Aggregate)
        .where(
            col(AggregateHost.aggregate_id) == Aggregate.id,
            col(AggregateHost.host).in_(hosts),
            Aggregate.id != but,
        )
        .order_by(col(AggregateHost.host))
    )
    zones: dict[str, set[str]] = {}
    for host, aggregate in rows:
        if aggregate.zone:
            zones.setdefault(host, set()).add(aggregate.zone)
    return zones


def find_membership(session: Session, aggregate_id: int, host: str) -> AggregateHost | None:
    """The membership of a host in an aggregate, or None."""
    return session.exec(
        select(AggregateHost).where(
            AggregateHost.aggregate_id == aggregate_id, AggregateHost.host == host
        )
    ).first()


def leave_aggregates(session: Session, host: str) -> None:
    """Take a host out of every aggregate."""
    session.exec(delete(AggregateHost).where(col(AggregateHost.host) == host))


def zones_of_hosts(session: Session, default: str) -> dict[str, str]:
    """Every host → its availability zone: an aggregate's, else its own, else ``default``."""
    given = {
        host: aggregate.zone
        for host, aggregate in session.exec(
            select(AggregateHost.host, Aggregate).where(
                col(AggregateHost.aggregate_id) == Aggregate.id
            )
        )
        if aggregate.zone
    }
    own = session.exec(select(Host.name, Host.availability_zone))
    return {name: given.get(name) or zone or default for name, zone in own}


def hosts_in_use(session: Session, hosts: Collection[str]) -> dict[str, int]:
    """Those of the hosts that have servers → how many."""
    rows = session.exec(
        select(Server.host, func.count())
        .where(col(Server.host).in_(hosts), col(Server.deleted_at).is_(None))
        .group_by(col(Server.host))
    )
    return {str(host): int(count) for host, count in rows}
