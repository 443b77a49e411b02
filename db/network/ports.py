"""Queries on ports and their addresses. The database's constraints refuse a second owner of an address."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Executable, bindparam, delete, insert, or_, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import make_transient, make_transient_to_detached
from sqlmodel import Session, col, select

from db.network.networks import address_owner, network_not_found, subnets_of
from db.network.tables import FixedIp, Network, Port, PortSecurityGroup, Subnet
from db.servers import Server
from db.session import fetch
from domain.addressing import (
    candidates,
    choose_free,
    invalid,
    is_host_address,
    new_mac,
    parse_address,
)
from domain.errors import BadRequest, Conflict, NotFound
from domain.ids import new_id

_RNG = random.SystemRandom()
_TRIES = 30


@dataclass(frozen=True, slots=True)
class FixedIpRequest:
    """A wish for one address: a subnet, an address, or both."""

    subnet_id: str | None = None
    ip: str | None = None


def visible_ports(project_id: str | None) -> ColumnElement[bool]:
    """Own ports and all ports on own networks."""
    if project_id is None:
        return true()
    own_networks = select(Network.id).where(Network.project_id == project_id)
    return or_(col(Port.project_id) == project_id, col(Port.network_id).in_(own_networks))


def port_not_found(port_id: str) -> NotFound:
    """Neutron's words."""
    return NotFound(f"Port {port_id:.64} could not be found.", "PortNotFound")


def get_port(session: Session, port_id: str, project_id: str | None, *, lock: bool = False) -> Port:
    """One visible port. NotFound."""
    statement = select(Port).where(Port.id == port_id, visible_ports(project_id))
    found = session.exec(statement.with_for_update() if lock else statement).first()
    if found is None:
        raise port_not_found(port_id)
    return found


def fixed_ips_of(session: Session, port_ids: Sequence[str]) -> dict[str, list[FixedIp]]:
    """Port id → its addresses; every asked id is a key."""
    found: dict[str, list[FixedIp]] = {port_id: [] for port_id in port_ids}
    for row in session.exec(
        select(FixedIp).where(col(FixedIp.port_id).in_(port_ids)).order_by(FixedIp.ip)
    ):
        found[row.port_id].append(row)
    return found


_MEMBERSHIPS = (
    sqlalchemy.select(col(PortSecurityGroup.port_id), col(PortSecurityGroup.security_group_id))
    .where(col(PortSecurityGroup.port_id).in_(bindparam("port_ids", expanding=True)))
    .order_by(col(PortSecurityGroup.security_group_id))
)


def groups_of(session: Session, port_ids: Sequence[str]) -> dict[str, list[str]]:
    """Port id → ids of its security groups; every asked id is a key."""
    found: dict[str, list[str]] = {port_id: [] for port_id in port_ids}
    for port_id, group_id in fetch(session, _MEMBERSHIPS, port_ids=list(port_ids)):
        found[port_id].append(group_id)
    return found


def server_of(session: Session, device_id: str) -> Server | None:
    """The living server that a port's ``device_id`` names, if it names one."""
    if not device_id:
        return None
    return session.exec(
        select(Server).where(Server.id == device_id, col(Server.deleted_at).is_(None))
    ).first()


def add_port(
    session: Session,
    port: Port,
    addresses: Sequence[FixedIpRequest] | None,
    group_ids: Iterable[str] = (),
) -> Port:
    """Insert a port with its MAC (new unless given), addresses and groups.

    ``addresses=None`` takes one free address if the network has a subnet. Conflict when a MAC or
    address is taken or none is left, BadRequest for an impossible wish. Leaves nothing behind when it
    raises.
    """
    with session.begin_nested():
        return insert_port(session, port, addresses, group_ids)


def insert_port(
    session: Session,
    port: Port,
    addresses: Sequence[FixedIpRequest] | None,
    group_ids: Iterable[str] = (),
    check: Callable[[Sequence[Subnet]], None] | None = None,
) -> Port:
    """As ``add_port``, for a caller who rolls back to a savepoint of his own when it raises. ``check`` may
    refuse the network's subnets: nobody adds or deletes one from the port's insert to the transaction's
    end."""
    _insert_with_mac(session, port)
    try:
        subnets = subnets_of(session, [port.network_id])[port.network_id]
        if check is not None:
            check(subnets)
        if addresses is not None:
            set_addresses(session, port, addresses, subnets)
        elif subnets:
            take_any_address(session, port, subnets)
        _join_groups(session, port, group_ids)
    except BaseException:
        if port in session:  # its row goes with the savepoint, of which the session knows nothing
            session.expunge(port)
        make_transient(port)
        raise
    return port


def _insert_with_mac(session: Session, port: Port) -> None:
    given = port.mac
    for _ in range(1 if given else _TRIES):
        port.mac = given or new_mac(_RNG)
        try:
            made = _insert(session, Port, port.model_dump(), "network_id", "mac")
        except IntegrityError:
            raise network_not_found(port.network_id) from None  # deleted meanwhile
        if made:
            make_transient_to_detached(port)  # it is in the database as it is here
            session.add(port)
            return
    raise _mac_in_use(port, port.mac)


def _insert(session: Session, table: Any, row: dict[str, Any], *unique: str) -> bool:
    """Add a row; False when another one has its place. One statement, where an error that is to be
    survived would need a savepoint around it."""
    return bool(fetch(session, _insertion(session.get_bind().dialect.name, table, unique), **row))


@cache
def _insertion(dialect: str, table: Any, unique: tuple[str, ...]) -> Executable:
    insert_into: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement: Executable = (
        insert_into(table).on_conflict_do_nothing(index_elements=unique).returning(table.id)
    )
    return statement


def _mac_taken(session: Session, port: Port, mac: str) -> bool:
    statement = select(Port.id).where(
        Port.network_id == port.network_id, Port.mac == mac, Port.id != port.id
    )
    return session.exec(statement).first() is not None


def _mac_in_use(port: Port, mac: str) -> Conflict:
    return Conflict(
        f"Unable to complete operation for network {port.network_id}. The mac address {mac} is in use.",
        "MacAddressInUse",
    )


def change_mac(session: Session, port: Port, mac: str) -> None:
    """Give the port another MAC. Conflict when the network has it already."""
    if _mac_taken(session, port, mac):
        raise _mac_in_use(port, mac)
    port.mac = mac
    try:
        with session.begin_nested():
            session.add(port)
    except IntegrityError:  # somebody was first
        raise _mac_in_use(port, mac) from None


def set_groups(session: Session, port: Port, group_ids: Iterable[str]) -> None:
    """Make these the port's security groups; they must exist."""
    with session.begin_nested():
        session.exec(delete(PortSecurityGroup).where(col(PortSecurityGroup.port_id) == port.id))
        _join_groups(session, port, group_ids)


_JOIN_GROUP = insert(PortSecurityGroup)


def _join_groups(session: Session, port: Port, group_ids: Iterable[str]) -> None:
    rows = [{"port_id": port.id, "security_group_id": group} for group in sorted(set(group_ids))]
    try:
        if rows:
            session.connection().execute(_JOIN_GROUP, rows)
    except IntegrityError:
        raise NotFound("Security group could not be found.", "SecurityGroupNotFound") from None


def set_addresses(
    session: Session, port: Port, wishes: Sequence[FixedIpRequest], subnets: Sequence[Subnet]
) -> None:
    """Make the port's addresses answer these wishes; an address it has and still wants stays."""
    kept = {(row.subnet_id, row.ip): row for row in fixed_ips_of(session, [port.id])[port.id]}
    wanted = [_resolve(port, wish, subnets) for wish in wishes]
    exact = [(subnet.id, ip) for subnet, ip in wanted if ip]
    if len(set(exact)) != len(exact):
        raise invalid("Duplicate IP addresses were asked for")
    for pair, row in kept.items():
        if pair not in exact:
            session.delete(row)
    session.flush()
    for subnet, ip in wanted:
        if ip is None:
            take_any_address(session, port, [subnet])
        elif (subnet.id, ip) not in kept:
            _take(session, port, subnet, ip)


def _resolve(
    port: Port, wish: FixedIpRequest, subnets: Sequence[Subnet]
) -> tuple[Subnet, str | None]:
    """The subnet, and the address in normal form if one is wished for."""
    if wish.subnet_id is not None:
        named = [subnet for subnet in subnets if subnet.id == wish.subnet_id]
        if not named:
            raise invalid(
                f"Failed to create port on network {port.network_id}, because fixed_ips included invalid "
                f"subnet {wish.subnet_id:.64}"
            )
        subnets = named
    if wish.ip is None:
        if wish.subnet_id is None:
            raise invalid("IP allocation requires subnet_id or ip_address")
        return subnets[0], None
    address = parse_address(wish.ip)
    for subnet in subnets:
        if is_host_address(IPv4Network(subnet.cidr), address):
            if str(address) == subnet.gateway_ip:  # the hosts answer there
                raise _in_use(port, str(address))
            return subnet, str(address)
    raise BadRequest(
        f"IP address {address} is not a valid IP for any of the subnets on the specified network.",
        "InvalidIpForNetwork",
    )


def _in_use(port: Port, ip: str) -> Conflict:
    return Conflict(
        f"Unable to complete operation for network {port.network_id}. The IP address {ip} is in use.",
        "IpAddressInUse",
    )


def _take(session: Session, port: Port, subnet: Subnet, ip: str) -> None:
    if address_owner(session, subnet.id, ip) or not _try_take(session, port, subnet, ip):
        raise _in_use(port, ip)


def _try_take(session: Session, port: Port, subnet: Subnet, ip: str) -> bool:
    """Insert the address; False when another transaction was first."""
    row = {"id": new_id(), "port_id": port.id, "subnet_id": subnet.id, "ip": ip}
    return _insert(session, FixedIp, row, "subnet_id", "ip")


def take_any_address(session: Session, port: Port, subnets: Sequence[Subnet]) -> None:
    """Give the port one free address of the first subnet that has one. Conflict when none has."""
    for subnet in subnets:
        for _ in range(_TRIES):
            ip = free_address(session, subnet)
            if ip is None:
                break
            if _try_take(session, port, subnet, ip):
                return
    raise Conflict(
        f"No more IP addresses available on network {port.network_id}.",
        "IpAddressGenerationFailure",
    )


_ADDRESSES = sqlalchemy.select(col(FixedIp.ip)).where(
    col(FixedIp.subnet_id) == bindparam("subnet_id")
)
_ADDRESSES_AMONG = _ADDRESSES.where(col(FixedIp.ip).in_(bindparam("sample", expanding=True)))


def free_address(session: Session, subnet: Subnet) -> str | None:
    """A free address of the subnet's pools, or None. Looks at few rows unless the pools are nearly full."""
    sample = candidates(subnet.allocation_pools, _RNG)
    if sample is not None:
        used = {
            ip for (ip,) in fetch(session, _ADDRESSES_AMONG, subnet_id=subnet.id, sample=sample)
        }
        for ip in sample:
            if ip not in used:
                return ip
    everything = fetch(session, _ADDRESSES, subnet_id=subnet.id)
    return choose_free(subnet.allocation_pools, (ip for (ip,) in everything), _RNG)


def remove_port(session: Session, port: Port) -> None:
    """Delete a port; its addresses and memberships go with it. Conflict while a server has it."""
    if server_of(session, port.device_id) is not None:
        raise Conflict(
            f"Unable to complete operation on port {port.id} for network {port.network_id}. Port already "
            f"has an attached device {port.device_id}.",
            "PortInUse",
        )
    session.delete(port)
    session.flush()
