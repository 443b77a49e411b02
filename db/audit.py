"""The record held against itself and against what hosts report: the invariants of ``domain.audit``.

Every function reads; give them one session on one snapshot (``db.session.snapshot``). What a live
operation owns is on its way, and no violation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, exists, func, or_, text
from sqlmodel import Session, SQLModel, col, select

from db.audit_reports import audit_reports
from db.differences import columns, differing, looked_at
from db.groups import ServerGroup
from db.hosts import Claim
from db.identity import Grant, Role
from db.images import Image
from db.network.tables import FixedIp, Network, Port, PortSecurityGroup, SecurityGroup, Subnet
from db.operations import BUSY, IN_TRANSITION, Operation, idle
from db.servers import MISCOUNTED, Server, alive
from domain.amounts import amounts
from domain.audit import Finding, Violation, merged
from domain.states import VmState

_OWNED = "compute:%"


def audit_record(session: Session, at: datetime, silent_after_s: float) -> list[Finding]:
    """One finding for each invariant, as far as the record and the hosts' reports tell.

    A host that has not reported for ``silent_after_s`` tells nothing about its guests.
    """
    servers, devices = _count(session, Server, alive()), _suspect_devices(session)
    return merged(
        [
            _found("I1", _count(session, Claim), _claims(session)),
            _found("I2", _count(session, Port), _ports(session, devices)),
            _found("I2", _count(session, FixedIp), _addresses(session)),
            *audit_reports(session, at - timedelta(seconds=silent_after_s)),
            _found("I5", servers, _quotas(session)),
            _found("I6", servers, _transitions(session)),
            _found("I8", servers, _foreign(session, devices)),
        ]
    )


def ended_operations(
    session: Session, since: datetime, until: datetime, limit: int
) -> list[Operation]:
    """The newest operations that ended in this time, with a workflow of their own."""
    query = (
        select(Operation)
        .where(
            col(Operation.finished_at) >= since,
            col(Operation.finished_at) < until,
            col(Operation.started_at).is_not(None),
        )
        .order_by(col(Operation.finished_at).desc())
    )
    return list(session.exec(query.limit(limit)))


def _found(invariant: str, checked: int, violations: Iterator[Violation]) -> Finding:
    return Finding(invariant, checked, tuple(violations))


def _count(session: Session, table: type[SQLModel], *where: Any) -> int:
    return int(session.exec(select(func.count()).select_from(table).where(*where)).one())


# --- I1: claims


def _claims(session: Session) -> Iterator[Violation]:
    amounts_of = ("vcpus", "ram_mb", "disk_gb")
    suspects = differing(
        session,
        columns(Claim.server_id, Claim.host, *(getattr(Claim, a) for a in amounts_of)),
        columns(Server.id, Server.host, *(getattr(Server, a) for a in amounts_of)).where(alive()),
    )
    building = session.exec(select(Claim.server_id).where(col(Claim.building)))
    yield from _claims_of_nobody(session, dict.fromkeys([*suspects, *building]))
    yield from _wrong_amounts(session, suspects)
    unclaimed = differing(
        session,
        columns(Server.id, Server.host).where(alive(), col(Server.host).is_not(None)),
        columns(Claim.server_id, Claim.host),
    )
    missing = columns(Server.id, Server.host).where(
        alive(), idle(), ~exists().where(col(Claim.server_id) == Server.id)
    )
    for server_id, host in looked_at(session, missing, Server.id, unclaimed):
        yield Violation(f"server {server_id}", f"it is on {host} but has no claim there")


def _claims_of_nobody(session: Session, suspects: Iterable[str]) -> Iterator[Violation]:
    query = (
        columns(Claim.server_id, Claim.host, Server.id, Server.deleted_at, Server.host)
        .join(Server, col(Server.id) == Claim.server_id, isouter=True)
        .where(
            col(Claim.server_id).not_in(BUSY),
            or_(
                col(Server.id).is_(None),
                col(Server.deleted_at).is_not(None),
                col(Server.host).is_(None),
                col(Server.host) != col(Claim.host),
                and_(col(Claim.building), col(Server.vm_state) == VmState.ACTIVE),
            ),
        )
    )
    for server_id, host, known, deleted_at, at in looked_at(
        session, query, Claim.server_id, suspects
    ):
        if known is None:
            why = "its server has no record"
        elif deleted_at is not None:
            why = "its server is deleted"
        elif at != host:
            why = f"its server is on {at or 'no host'}"
        else:
            why = "it counts as building, but its server is active"
        yield Violation(f"claim of server {server_id} on {host}", why)


def _wrong_amounts(session: Session, suspects: Iterable[str]) -> Iterator[Violation]:
    """Claims that differ from the flavor at first sight, looked at closely."""
    query = (
        columns(
            *(Server.id, Claim.host, Server.flavor, Server.image),
            *(Claim.vcpus, Claim.ram_mb, Claim.disk_gb),
        )
        .join(Server, col(Server.id) == Claim.server_id)
        .where(alive(), idle())
    )
    for server_id, host, flavor, image, *held in looked_at(
        session, query, Claim.server_id, suspects
    ):
        wanted = amounts(flavor, image)
        if tuple(held) != wanted:
            yield Violation(
                f"claim of server {server_id} on {host}",
                f"it holds {tuple(held)} (vCPUs, MB, GB), its server takes {wanted}",
            )


# --- I2: ports and addresses


def _suspect_devices(session: Session) -> list[str]:
    """What ports have for a device that is no server of the same project and on the same host; those of
    servers on no host are always among them."""
    return differing(
        session,
        columns(Port.device_id, Port.project_id, Port.host).where(
            or_(col(Port.device_id) != "", col(Port.made_by_server))
        ),
        columns(Server.id, Server.project_id, Server.host).where(alive()),
    )


def _ports(session: Session, devices: Iterable[str]) -> Iterator[Violation]:
    query = (
        columns(
            *(Port.id, Port.device_id, Port.host, Server.id, Server.deleted_at, Server.host),
        )
        .join(Server, col(Server.id) == Port.device_id, isouter=True)
        .where(
            col(Port.device_id).not_in(BUSY),
            or_(
                and_(col(Port.made_by_server), col(Server.id).is_(None)),
                col(Server.deleted_at).is_not(None),
                and_(
                    col(Server.id).is_not(None),
                    func.coalesce(Server.host, "") != col(Port.host),
                ),
            ),
        )
    )
    for port_id, device_id, host, known, deleted_at, at in looked_at(
        session, query, Port.device_id, devices
    ):
        if known is None:
            why = f"it was made for server {device_id or '(none)'}, which has no record"
        elif deleted_at is not None:
            why = f"its server {device_id} is deleted"
        else:
            why = f"it is bound to {host or 'no host'}, its server {device_id} is on {at or 'no host'}"
        yield Violation(f"port {port_id}", why)


def _addresses(session: Session) -> Iterator[Violation]:
    # In one subnet the database refuses a second owner.
    several = select(Subnet.network_id).group_by(Subnet.network_id).having(func.count() > 1)
    twice = (
        select(Port.network_id, FixedIp.ip)
        .join(Port, col(Port.id) == FixedIp.port_id)
        .where(col(Port.network_id).in_(several))
        .group_by(Port.network_id, FixedIp.ip)
        .having(func.count() > 1)
    )
    for network_id, ip in session.exec(twice):
        yield Violation(f"address {ip} on network {network_id}", "several ports have it")
    lost = differing(
        session,
        columns(FixedIp.port_id, Subnet.network_id).join(
            Subnet, col(Subnet.id) == FixedIp.subnet_id, isouter=True
        ),
        columns(Port.id, Port.network_id),
    )
    query = (
        columns(FixedIp.id, FixedIp.ip, FixedIp.port_id)
        .join(Port, col(Port.id) == FixedIp.port_id, isouter=True)
        .join(Subnet, col(Subnet.id) == FixedIp.subnet_id, isouter=True)
        .where(
            or_(
                col(Port.id).is_(None),
                col(Subnet.id).is_(None),
                col(Subnet.network_id) != col(Port.network_id),
            )
        )
    )
    for address_id, ip, port_id in looked_at(session, query, FixedIp.port_id, lost):
        yield Violation(
            f"address {ip} ({address_id})", f"port {port_id} or its subnet does not exist"
        )


# --- I5: quotas


def _quotas(session: Session) -> Iterator[Violation]:
    wrong = text(MISCOUNTED[session.get_bind().dialect.name])
    query = select(Server.id, Server.project_id).where(wrong)
    query = query.order_by(Server.project_id, Server.id)  # as in the index that is meant
    for server_id, project_id in session.exec(query):
        yield Violation(
            f"server {server_id}",
            f"what counts for the quota of project {project_id} differs from its flavor",
        )


# --- I6: transitions


def _transitions(session: Session) -> Iterator[Violation]:
    query = select(Server.id, Server.vm_state, Server.task_state).where(
        col(Server.id).in_(IN_TRANSITION), idle()
    )
    for server_id, vm_state, task_state in session.exec(query):
        yield Violation(
            f"server {server_id}", f"it is {vm_state}/{task_state}, but no live operation owns it"
        )


# --- I8: references between projects


def _foreign(session: Session, devices: Iterable[str]) -> Iterator[Violation]:
    yield from _foreign_ports(session, devices)
    yield from _foreign_networks(session)
    yield from _foreign_groups(session)
    yield from _foreign_server_groups(session)
    yield from _foreign_operations(session)
    yield from _foreign_images(session)


def _foreign_ports(session: Session, devices: Iterable[str]) -> Iterator[Violation]:
    query = (
        columns(Port.id, Server.id)
        .join(Server, col(Server.id) == Port.device_id)
        .where(alive(), col(Port.project_id) != Server.project_id)
    )
    for port_id, server_id in looked_at(session, query, Port.device_id, devices):
        yield Violation(f"port {port_id}", f"its server {server_id} belongs to another project")


def _foreign_networks(session: Session) -> Iterator[Violation]:
    users = select(Port.network_id, Port.project_id).distinct().subquery()
    networks = (
        select(Network.id)
        .join(users, users.c.network_id == Network.id)
        .where(users.c.project_id != Network.project_id, col(Network.shared).is_(False))
    )
    query = (
        columns(Port.id, Network.id)
        .join(Network)
        .where(col(Port.device_owner).like(_OWNED), col(Port.project_id) != Network.project_id)
    )
    suspects = dict.fromkeys(session.exec(networks))
    for port_id, network_id in looked_at(session, query, Port.network_id, suspects):
        yield Violation(
            f"port {port_id}", f"its network {network_id} belongs to another project, unshared"
        )


def _foreign_groups(session: Session) -> Iterator[Violation]:
    suspects = differing(
        session,
        columns(PortSecurityGroup.port_id, SecurityGroup.project_id).join(SecurityGroup),
        columns(Port.id, Port.project_id),
    )
    query = (
        columns(Port.id, SecurityGroup.id)
        .join(PortSecurityGroup, col(PortSecurityGroup.port_id) == Port.id)
        .join(SecurityGroup, col(SecurityGroup.id) == PortSecurityGroup.security_group_id)
        .where(col(SecurityGroup.project_id) != Port.project_id)
    )
    for port_id, group_id in looked_at(session, query, Port.id, suspects):
        yield Violation(f"port {port_id}", f"security group {group_id} belongs to another project")


def _foreign_server_groups(session: Session) -> Iterator[Violation]:
    suspects = differing(
        session,
        columns(Server.group_id, Server.project_id).where(col(Server.group_id).is_not(None)),
        columns(ServerGroup.id, ServerGroup.project_id),
    )
    query = (
        columns(Server.id, ServerGroup.id)
        .join(ServerGroup, col(ServerGroup.id) == Server.group_id)
        .where(alive(), col(ServerGroup.project_id) != Server.project_id)
    )
    for server_id, group_id in looked_at(session, query, Server.group_id, suspects):
        yield Violation(f"server {server_id}", f"group {group_id} belongs to another project")


def _foreign_operations(session: Session) -> Iterator[Violation]:
    suspects = differing(
        session,
        columns(Operation.server_id, Operation.project_id),
        columns(Server.id, Server.project_id),
    )
    query = (
        columns(Operation.id, Server.id)
        .join(Server)
        .where(alive(), col(Operation.project_id) != Server.project_id)
    )
    for operation_id, server_id in looked_at(session, query, Operation.server_id, suspects):
        yield Violation(
            f"operation {operation_id}", f"server {server_id} belongs to another project"
        )


def _foreign_images(session: Session) -> Iterator[Violation]:
    """Servers made from an image that their project could not have seen. One that was hidden later is none,
    nor is one that an administrator chose."""
    administrators = (
        select(Grant.user_id).join(Role, col(Role.id) == Grant.role_id).where(Role.name == "admin")
    )
    query = (
        columns(Server.id, Image.id)
        .join(Image, col(Image.id) == Server.image_id)
        .where(
            alive(),
            col(Image.project_id) != Server.project_id,
            col(Image.visibility) == "private",
            col(Image.updated_at) < col(Server.created_at),
            col(Server.user_id).not_in(administrators),
        )
    )
    private = session.exec(select(Image.id).where(Image.visibility == "private"))
    for server_id, image_id in looked_at(session, query, Server.image_id, private):
        yield Violation(f"server {server_id}", f"image {image_id} was never its project's to see")
