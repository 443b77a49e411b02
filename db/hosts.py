"""Hosts with what they report, and claims: the one truth about what is used where."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy import Index, bindparam, case, delete, func, text, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import id_column, instant, json_column, stamped
from db.servers import Server
from db.session import change, now
from domain.errors import BadRequest, Conflict, NotFound
from domain.guest import Inventory
from domain.ids import new_id
from domain.usage import Usage

_PLACEMENT_LOCK = (
    0x6475726F  # any number of our own; PostgreSQL's advisory locks share one name space
)


_BUILDING: dict[str, Any] = {
    "sqlite_where": text("building = 1"),
    "postgresql_where": text("building"),
}


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
    cpu_allocation_ratio: float | None = None
    """Overcommit of this host alone; an aggregate's metadata or the cloud's setting otherwise."""
    ram_allocation_ratio: float | None = None
    disk_allocation_ratio: float | None = None
    nics_wanted: int = 0
    """Grows when what this host's filters must say changed through somebody else's port."""
    nics_told: int = 0
    """The ``nics_wanted`` up to which the host was told to look anew."""
    created_at: datetime = stamped()
    updated_at: datetime = stamped()


class Claim(SQLModel, table=True):
    """What one server takes of one host. Used = the sum over a host's claims; nothing else is counted."""

    __tablename__ = "claim"
    __table_args__ = (
        # covers the sums of every decision, so that they never touch the rows
        Index("claim_usage", "host", "building", "vcpus", "ram_mb", "disk_gb"),
        # covers the audit's look at what is claimed for which server
        Index("claim_of_server", "server_id", "host", "vcpus", "ram_mb", "disk_gb"),
        Index("claim_building", "server_id", **_BUILDING),
    )
    id: str = id_column()
    server_id: str = Field(foreign_key="server.id", max_length=36, unique=True)
    host: str = Field(foreign_key="host.name", max_length=255)
    operation_id: str = Field(max_length=36)
    attempt: int = 1
    """Of that operation."""
    epoch: int
    vcpus: int
    ram_mb: int
    disk_gb: int
    group_id: str | None = Field(default=None, max_length=36, index=True)
    building: bool = True
    """Counts as an IO operation of the host until the server is active."""
    created_at: datetime = stamped()


class HostLimits(Protocol):
    """The settings that queries on hosts need."""

    @property
    def host_silent_after_s(self) -> float: ...


def list_hosts(session: Session) -> list[Host]:
    """Every host, by name."""
    return list(session.exec(select(Host).order_by(Host.name)))


class SignOfLife(NamedTuple):
    """What tells whether a host is up."""

    name: str
    forced_down: bool
    reported_at: datetime | None


def signs_of_life(session: Session) -> list[SignOfLife]:
    """Of every host, by name."""
    query = select(Host.name, Host.forced_down, Host.reported_at).order_by(Host.name)
    return [SignOfLife(*row) for row in session.exec(query)]


def get_host(session: Session, name: str) -> Host:
    """One host. NotFound if none of this name ever reported."""
    host = session.get(Host, name)
    if host is None:
        raise NotFound(f"Compute host {name} could not be found.")
    return host


def is_up(host: Host | SignOfLife, settings: HostLimits, now: datetime) -> bool:
    """Whether the host's worker is alive: it reported lately and nobody forced it down."""
    if host.forced_down or host.reported_at is None:
        return False
    return (now - host.reported_at).total_seconds() <= settings.host_silent_after_s


def report_host(
    session: Session,
    name: str,
    inventory: Inventory,
    epoch: str,
    at: datetime,
    availability_zone: str | None = None,
) -> Host:
    """Take down what a host says about itself; its first report makes it known.

    Conflict when another hypervisor reports under this name, or this hypervisor under another name:
    a renamed or reinstalled host must not be taken for one whose guests have all gone.
    """
    host = session.get(Host, name) or _new_host(session, name, inventory)
    if inventory.uuid and host.uuid != inventory.uuid:
        raise Conflict(
            f"Host {name} is hypervisor {host.uuid}, but hypervisor {inventory.uuid} reports under its "
            "name. Give the new hypervisor a name of its own, or delete the host first."
        )
    facts = _facts(inventory)
    facts["availability_zone"] = availability_zone
    changed = {key: value for key, value in facts.items() if getattr(host, key) != value}
    for key, value in changed.items():
        setattr(host, key, value)
    if changed:
        host.updated_at = at
    host.epoch = epoch
    host.reported_at = at
    session.add(host)
    return host


def _new_host(session: Session, name: str, inventory: Inventory) -> Host:
    try:
        with session.begin_nested():
            host = Host(name=name, uuid=inventory.uuid or new_id(), service_id=new_id())
            session.add(host)
        return host
    except IntegrityError:
        known = session.get(Host, name)  # a first report that came twice at once
        if known is not None:
            return known
        raise Conflict(
            f"Hypervisor {inventory.uuid} already reports as another host than {name}; "
            "a host keeps its name for life."
        ) from None


def _facts(inventory: Inventory) -> dict[str, Any]:
    return {
        "vcpus": inventory.vcpus,
        "ram_mb": inventory.ram_mb,
        "disk_gb": inventory.disk_gb,
        "hypervisor_type": inventory.hypervisor_type,
        "hypervisor_version": inventory.hypervisor_version,
        "hypervisor_hostname": inventory.hypervisor_hostname,
        "cpu_arch": inventory.cpu_arch,
        "cpu_model": inventory.cpu_model,
        "host_ip": inventory.host_ip,
        "capabilities": sorted(inventory.capabilities),
    }


def set_allocation_ratios(
    session: Session,
    name: str,
    *,
    cpu: float | None = None,
    ram: float | None = None,
    disk: float | None = None,
) -> Host:
    """Overcommit of one host instead of the cloud's; None goes back to the cloud's.

    BadRequest for a ratio that is not a positive number.
    """
    for ratio in (cpu, ram, disk):
        if ratio is not None and not (0 < ratio < float("inf")):
            raise BadRequest(f"An allocation ratio is a positive number, not {ratio}")
    host = get_host(session, name)
    host.cpu_allocation_ratio = cpu
    host.ram_allocation_ratio = ram
    host.disk_allocation_ratio = disk
    host.updated_at = now()
    session.add(host)
    return host


CLAIMED: tuple[Any, ...] = (
    Claim.host,
    func.sum(Claim.vcpus).label("used_vcpus"),
    func.sum(Claim.ram_mb).label("used_ram_mb"),
    func.sum(Claim.disk_gb).label("used_disk_gb"),
    func.count().label("used_servers"),
    func.sum(case((col(Claim.building), 1), else_=0)).label("used_building"),
)
"""Columns of a query on claims that is grouped by host: the host, and the fields of its ``Usage``."""


def usage_by_host(session: Session) -> dict[str, Usage]:
    """What is claimed, by host; a host without claims is missing."""
    query = sa.select(*CLAIMED).group_by(col(Claim.host))
    return {host: Usage(*sums) for host, *sums in session.connection().execute(query)}


_WANT_NICS = (
    update(Host)
    .where(col(Host.name).in_(bindparam("names", expanding=True)))
    .values(nics_wanted=Host.nics_wanted + 1)
)


def want_nics(session: Session, hosts: Iterable[str]) -> None:
    """Note that the filters of these hosts must be made anew; their next report sets it going."""
    if names := sorted(hosts):
        change(session, _WANT_NICS, names=names)


def told_nics(session: Session, host: str, wanted: int) -> None:
    """Note that a host was told to make its filters anew, as of this ``nics_wanted``."""
    session.exec(update(Host).where(col(Host.name) == host).values(nics_told=wanted))


def lock_placement(session: Session) -> None:
    """Let one transaction at a time decide and claim; held until it ends.

    On SQLite the write lock of every transaction does this already.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(select(func.pg_advisory_xact_lock(_PLACEMENT_LOCK)))


_CLAIM_OF = col(Claim.server_id) == bindparam("of_server")
_BUILT = update(Claim).where(_CLAIM_OF).values(building=False)
_GIVE_BACK = delete(Claim).where(_CLAIM_OF)


def note_built(session: Session, server_id: str) -> None:
    """The server is built: it is no IO operation of its host any more."""
    change(session, _BUILT, of_server=server_id)


def drop_claim(session: Session, server_id: str) -> None:
    """Give back what the server has claimed."""
    change(session, _GIVE_BACK, of_server=server_id)


def get_claim(session: Session, server_id: str) -> Claim | None:
    """What the server has claimed."""
    return session.exec(select(Claim).where(Claim.server_id == server_id)).one_or_none()


def group_members(session: Session, group_id: str, but: str) -> dict[str, int]:
    """host → servers of the group that have a claim there, without the server ``but``."""
    query = (
        select(Claim.host, func.count())
        .where(Claim.group_id == group_id, Claim.server_id != but)
        .group_by(Claim.host)
    )
    return dict(session.exec(query).all())


def hosts_of_servers(session: Session, server_ids: Iterable[str], project_id: str) -> set[str]:
    """Where these servers are; another project's servers are as good as unknown."""
    query = (
        select(Claim.host)
        .join(Server, col(Server.id) == Claim.server_id)
        .where(col(Claim.server_id).in_(list(server_ids)), Server.project_id == project_id)
    )
    return set(session.exec(query))


def count_claims(session: Session, host: str) -> int:
    """How many servers have a claim on the host."""
    return int(session.exec(select(func.count()).where(Claim.host == host)).one())


def servers_on(session: Session, hosts: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Host → (id, name) of the servers there, deleted ones left out; hosts without any are missing."""
    query = (
        select(Server.host, Server.id, Server.name)
        .where(col(Server.host).in_(list(hosts)), col(Server.deleted_at).is_(None))
        .order_by(col(Server.created_at), col(Server.id))
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for host, server_id, name in session.exec(query):
        found.setdefault(str(host), []).append((server_id, name))
    return found
