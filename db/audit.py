"""The record held against itself and against what hosts report: the invariants of ``domain.audit``.

Every function reads; give them one session on one snapshot (``db.session.snapshot``). What a live
operation owns is on its way, and no violation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Float, and_, func, or_
from sqlmodel import Session, col, select

from db.groups import ServerGroup
from db.hosts import Claim
from db.identity import Grant, Role
from db.images import Image
from db.network.tables import FixedIp, Network, Port, PortSecurityGroup, SecurityGroup, Subnet
from db.operations import Operation
from db.servers import Server
from db.sightings import UNKNOWN, HostSighting, Place, places_of, sightings_of
from domain.amounts import amounts
from domain.audit import Finding, Violation, merged
from domain.states import LIVE_OPERATION_STATES, PowerState, VmState

_BUSY = select(Operation.server_id).where(col(Operation.state).in_(LIVE_OPERATION_STATES))
_OWNED = "compute:%"
_UP = (PowerState.RUNNING, PowerState.PAUSED)
_WANTED: dict[str, tuple[PowerState, ...]] = {
    VmState.ACTIVE: (PowerState.RUNNING,),
    VmState.PAUSED: (PowerState.PAUSED,),
    VmState.SUSPENDED: (PowerState.SUSPENDED, PowerState.SHUTDOWN),
    VmState.STOPPED: (PowerState.SHUTDOWN, PowerState.CRASHED, PowerState.NOSTATE),
}
"""VM state → the power states that a guest of such a server may have."""


def audit_record(session: Session, at: datetime, silent_after_s: float) -> list[Finding]:
    """One finding for each invariant, as far as the record and the hosts' reports tell.

    A host that has not reported for ``silent_after_s`` tells nothing about its guests.
    """
    since = at - timedelta(seconds=silent_after_s)
    sightings = [(row, t) for row, t in sightings_of(session) if t is not None and t >= since]
    return merged(
        [
            _found("I1", _count(session, Claim.id), _claims(session)),
            _found("I2", _count(session, Port.id), _ports(session)),
            _found("I2", _count(session, FixedIp.id), _addresses(session)),
            _found("I3", sum(len(s.guests) for s, _ in sightings), _guests(session, sightings)),
            _found("I4", len(sightings), _residue(session, sightings)),
            _found("I5", _count(session, Server.id, _alive()), _quotas(session)),
            _found("I6", _count(session, Server.id, _alive()), _transitions(session)),
            _found("I8", _count(session, Server.id, _alive()), _foreign(session)),
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


def _count(session: Session, column: Any, *where: Any) -> int:
    return int(session.exec(select(func.count(column)).where(*where)).one())


def _alive() -> Any:
    return col(Server.deleted_at).is_(None)


def _idle() -> Any:
    return col(Server.id).not_in(_BUSY)


# --- I1: claims


def _claims(session: Session) -> Iterator[Violation]:
    yield from _claims_of_nobody(session)
    missing = select(Server.id, Server.host).where(
        _alive(),
        _idle(),
        col(Server.host).is_not(None),
        col(Server.id).not_in(select(Claim.server_id)),
    )
    for server_id, host in session.exec(missing):
        yield Violation(f"server {server_id}", f"it is on {host} but has no claim there")
    yield from _wrong_amounts(session)


def _claims_of_nobody(session: Session) -> Iterator[Violation]:
    query = (
        select(Claim.server_id, Claim.host, Claim.building, Server)
        .join(Server, col(Server.id) == Claim.server_id, isouter=True)
        .where(
            col(Claim.server_id).not_in(_BUSY),
            or_(
                col(Server.id).is_(None),
                col(Server.deleted_at).is_not(None),
                col(Server.host).is_(None),
                col(Server.host) != col(Claim.host),
                and_(col(Claim.building), col(Server.vm_state) == VmState.ACTIVE),
            ),
        )
    )
    for server_id, host, _building, server in session.exec(query):
        if server is None:
            why = "its server has no record"
        elif server.deleted_at is not None:
            why = "its server is deleted"
        elif server.host != host:
            why = f"its server is on {server.host or 'no host'}"
        else:
            why = "it counts as building, but its server is active"
        yield Violation(f"claim of server {server_id} on {host}", why)


def _wrong_amounts(session: Session) -> Iterator[Violation]:
    """Claims that differ from the flavor at first sight, looked at closely."""
    query = (
        select(Claim, Server)
        .join(Server, col(Server.id) == Claim.server_id)
        .where(
            _alive(),
            _idle(),
            or_(
                col(Claim.vcpus) != col(Server.vcpus),
                col(Claim.ram_mb) != col(Server.ram_mb),
                col(Claim.disk_gb) != col(Server.disk_gb),
            ),
        )
    )
    for claim, server in session.exec(query):
        wanted = amounts(server.flavor, server.image)
        held = (claim.vcpus, claim.ram_mb, claim.disk_gb)
        if held != wanted:
            yield Violation(
                f"claim of server {server.id} on {claim.host}",
                f"it holds {held} (vCPUs, MB, GB), its server takes {wanted}",
            )


# --- I2: ports and addresses


def _ports(session: Session) -> Iterator[Violation]:
    query = (
        select(Port.id, Port.device_id, Port.host, Server)
        .join(Server, col(Server.id) == Port.device_id, isouter=True)
        .where(
            col(Port.device_id).not_in(_BUSY),
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
    for port_id, device_id, host, server in session.exec(query):
        if server is None:
            why = f"it was made for server {device_id or '(none)'}, which has no record"
        elif server.deleted_at is not None:
            why = f"its server {device_id} is deleted"
        else:
            why = f"it is bound to {host or 'no host'}, its server {device_id} is on {server.host or 'no host'}"
        yield Violation(f"port {port_id}", why)


def _addresses(session: Session) -> Iterator[Violation]:
    twice = (
        select(Port.network_id, FixedIp.ip)
        .join(Port, col(Port.id) == FixedIp.port_id)
        .group_by(Port.network_id, FixedIp.ip)
        .having(func.count() > 1)
    )
    for network_id, ip in session.exec(twice):
        yield Violation(f"address {ip} on network {network_id}", "several ports have it")
    lost = (
        select(FixedIp.id, FixedIp.ip, FixedIp.port_id)
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
    for address_id, ip, port_id in session.exec(lost):
        yield Violation(
            f"address {ip} ({address_id})", f"port {port_id} or its subnet does not exist"
        )


# --- I3, I4: what hosts report

_Sightings = list[tuple[HostSighting, datetime]]


def _guests(session: Session, sightings: _Sightings) -> Iterator[Violation]:
    seen: dict[str, list[tuple[str, int]]] = defaultdict(list)
    places = places_of(session, [guest for sighting, _ in sightings for guest in sighting.guests])
    for sighting, reported_at in sightings:
        for server_id, (power_state, _epoch) in sighting.guests.items():
            seen[server_id].append((sighting.host, power_state))
            place = places.get(server_id, UNKNOWN)
            why = place.wrong_on(sighting.host)
            if why and not _newer(place, reported_at):
                yield Violation(f"guest of server {server_id} on {sighting.host}", why)
    for server_id, copies in seen.items():
        running = [host for host, power in copies if power in _UP]
        if len(running) > 1:
            where = ", ".join(sorted(running))
            yield Violation(f"server {server_id}", f"it runs more than once: on {where}")
    yield from _absent(session, sightings)


def _absent(session: Session, sightings: _Sightings) -> Iterator[Violation]:
    """Servers whose guest their host does not report, or reports in another state."""
    reports = {sighting.host: (sighting.guests, at) for sighting, at in sightings}
    query = select(Server.id, Server.host, Server.vm_state, Server.updated_at).where(
        _alive(),
        _idle(),
        col(Server.host).in_(sorted(reports)),
        col(Server.vm_state).in_(list(_WANTED)),
    )
    for server_id, host, vm_state, updated_at in session.exec(query):
        guests, reported_at = reports[str(host)]
        if updated_at >= reported_at:
            continue  # the report is older than what it would be held against
        subject = f"server {server_id} on {host}"
        if server_id not in guests:
            yield Violation(subject, f"it is {vm_state}, but the host has no guest of it")
            continue
        power_state = PowerState(guests[server_id][0])
        if power_state not in _WANTED[vm_state]:
            yield Violation(
                subject, f"it is {vm_state}, but its guest is {power_state.name.lower()}"
            )


def _residue(session: Session, sightings: _Sightings) -> Iterator[Violation]:
    places = places_of(session, [name for sighting, _ in sightings for name in sighting.residue])
    for sighting, _ in sightings:
        for name in sighting.residue:
            place = places.get(name, UNKNOWN)
            if place.busy or name in sighting.guests or _newer(place, sighting.residue_at):
                continue
            why = place.wrong_on(sighting.host) or "it has no guest there"
            yield Violation(f"leftovers of {name} on {sighting.host}", why)


def _newer(place: Place, reported_at: datetime | None) -> bool:
    """Whether the record changed after the host said what it had."""
    if place.updated_at is None or reported_at is None:
        return False
    return place.updated_at >= reported_at


# --- I5: quotas


def _quotas(session: Session) -> Iterator[Violation]:
    columns = {name: col(getattr(Server, name)) for name in ("vcpus", "ram_mb", "disk_gb")}
    # as Float: a number in JSON may have been written as 1.0
    copies = {name: Server.flavor[name].as_string().cast(Float) for name in columns}
    query = select(Server.id, Server.project_id).where(
        _alive(), or_(*(columns[name] != copies[name] for name in columns))
    )
    for server_id, project_id in session.exec(query):
        yield Violation(
            f"server {server_id}",
            f"what counts for the quota of project {project_id} differs from its flavor",
        )


# --- I6: transitions


def _transitions(session: Session) -> Iterator[Violation]:
    query = select(Server.id, Server.vm_state, Server.task_state).where(
        _alive(),
        _idle(),
        or_(col(Server.task_state).is_not(None), col(Server.vm_state) == VmState.BUILDING),
    )
    for server_id, vm_state, task_state in session.exec(query):
        yield Violation(
            f"server {server_id}", f"it is {vm_state}/{task_state}, but no live operation owns it"
        )


# --- I8: references between projects


def _foreign(session: Session) -> Iterator[Violation]:
    yield from _foreign_ports(session)
    yield from _foreign_groups(session)
    group = select(Server.id, ServerGroup.id).join(
        ServerGroup, col(ServerGroup.id) == Server.group_id
    )
    for server_id, group_id in session.exec(
        group.where(_alive(), ServerGroup.project_id != Server.project_id)
    ):
        yield Violation(f"server {server_id}", f"group {group_id} belongs to another project")
    operation = select(Operation.id, Server.id).join(Server)
    for operation_id, server_id in session.exec(
        operation.where(_alive(), Operation.project_id != Server.project_id)
    ):
        yield Violation(
            f"operation {operation_id}", f"server {server_id} belongs to another project"
        )
    yield from _foreign_images(session)


def _foreign_ports(session: Session) -> Iterator[Violation]:
    ports = select(Port.id, Server.id).join(Server, col(Server.id) == Port.device_id)
    for port_id, server_id in session.exec(
        ports.where(_alive(), Port.project_id != Server.project_id)
    ):
        yield Violation(f"port {port_id}", f"its server {server_id} belongs to another project")
    networks = (
        select(Port.id, Network.id)
        .join(Network)
        .where(
            col(Port.device_owner).like(_OWNED),
            Port.project_id != Network.project_id,
            col(Network.shared).is_(False),
        )
    )
    for port_id, network_id in session.exec(networks):
        yield Violation(
            f"port {port_id}", f"its network {network_id} belongs to another project, unshared"
        )


def _foreign_groups(session: Session) -> Iterator[Violation]:
    query = (
        select(Port.id, SecurityGroup.id)
        .join(PortSecurityGroup, col(PortSecurityGroup.port_id) == Port.id)
        .join(SecurityGroup, col(SecurityGroup.id) == PortSecurityGroup.security_group_id)
        .where(SecurityGroup.project_id != Port.project_id)
    )
    for port_id, group_id in session.exec(query):
        yield Violation(f"port {port_id}", f"security group {group_id} belongs to another project")


def _foreign_images(session: Session) -> Iterator[Violation]:
    """Servers made from an image that their project could not have seen. One that was hidden later is none,
    nor is one that an administrator chose."""
    administrators = (
        select(Grant.user_id).join(Role, col(Role.id) == Grant.role_id).where(Role.name == "admin")
    )
    query = (
        select(Server.id, Image.id)
        .join(Image, col(Image.id) == Server.image_id)
        .where(
            _alive(),
            Image.project_id != Server.project_id,
            Image.visibility == "private",
            col(Image.updated_at) < col(Server.created_at),
            col(Server.user_id).not_in(administrators),
        )
    )
    for server_id, image_id in session.exec(query):
        yield Violation(f"server {server_id}", f"image {image_id} was never its project's to see")
