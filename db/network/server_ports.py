"""The ports of servers: allocated at create, bound to the host that runs the guest, released at delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, or_, update
from sqlmodel import Session, col, select

from db.network.networks import get_network, touch, usable_networks
from db.network.ports import (
    FixedIpRequest,
    fixed_ips_of,
    groups_of,
    insert_port,
    set_groups,
)
from db.network.quotas import check_network_quota
from db.network.security_groups import ensure_default_group, using_groups
from db.network.tables import Network, Port, PortSecurityGroup, SecurityGroup, Subnet
from db.quotas import SetLimits
from db.session import change, fetch, now
from domain.errors import BadRequest, Conflict, NotFound, QuotaExceeded


@dataclass(frozen=True, slots=True)
class PortRequest:
    """One network card asked for at server create: a network (``None``: the only usable one) with an
    optional address, or a port the user made."""

    network_id: str | None = None
    port_id: str | None = None
    fixed_ip: str | None = None
    tag: str | None = None


def allocate_server_ports(
    session: Session,
    *,
    server_id: str,
    project_id: str,
    az: str,
    requests: Sequence[PortRequest],
    security_groups: Sequence[str],
    limits: SetLimits | None = None,
) -> list[Port]:
    """Make or take a port per request, in that order, and mark them as the server's.

    ``security_groups`` are names or ids of the project's groups for the ports made here; none means
    ``default``. A taken port keeps its groups. ``limits`` are those that ``locked_limits`` has read
    already, if it has. BadRequest, Conflict and QuotaExceeded in Nova's words; nothing is kept when it
    raises.
    """
    groups = _resolve_groups(session, project_id, security_groups)
    new = [request for request in requests if request.port_id is None]
    if new:
        try:
            check_network_quota(session, project_id, "port", len(new), limits)
        except Conflict:
            raise QuotaExceeded("Maximum number of ports exceeded") from None
    ports = []
    with session.begin_nested():
        for index, request in enumerate(requests):
            if request.port_id is not None:
                port = _take_port(session, request.port_id, project_id)
            else:
                port = _new_port(_network_for(session, project_id, request.network_id), project_id)
            port.device_id, port.device_owner = server_id, f"compute:{az}"
            port.extra = {**port.extra, "index": index, "tag": request.tag}
            if request.port_id is not None:
                touch(port)
                session.add(port)
            else:
                _insert_port(session, port, request, groups, chosen=bool(security_groups))
            ports.append(port)
    return ports


def _resolve_groups(session: Session, project_id: str, asked: Sequence[str]) -> list[str]:
    """Ids of the named groups."""
    if not asked or "default" in asked:
        default = ensure_default_group(session, project_id).id
        if not asked:
            return [default]
    rows = session.exec(select(SecurityGroup).where(SecurityGroup.project_id == project_id)).all()
    found: list[str] = []
    for name in asked:
        matches = [g.id for g in rows if g.id == name] or [g.id for g in rows if g.name == name]
        if not matches:
            raise BadRequest(f"Security group {name:.255} not found.")
        if len(matches) > 1:
            raise Conflict(
                f"Multiple security groups found matching '{name}'. Use an ID to be more specific."
            )
        found.append(matches[0])
    return found


def _take_port(session: Session, port_id: str, project_id: str) -> Port:
    """A port the user made: his, free, and with an address."""
    port = session.exec(
        select(Port).where(Port.id == port_id, Port.project_id == project_id).with_for_update()
    ).first()
    if port is None:
        raise BadRequest(f"Port id {port_id:.64} could not be found.")
    if port.device_id:
        raise Conflict(f"Port {port_id} is still in use.")
    if not fixed_ips_of(session, [port_id])[port_id]:
        raise BadRequest(f"Port {port_id} requires a FixedIP in order to be used.")
    return port


def _new_port(network: Network, project_id: str) -> Port:
    return Port(
        network_id=network.id,
        project_id=project_id,
        mac="",
        port_security_enabled=network.port_security_enabled,
        made_by_server=True,
    )


def _insert_port(
    session: Session, port: Port, request: PortRequest, groups: list[str], *, chosen: bool
) -> None:
    def check(subnets: Sequence[Subnet]) -> None:
        if not subnets:
            raise BadRequest(
                f"Network {port.network_id} requires a subnet in order to boot instances on."
            )
        if chosen and not port.port_security_enabled:
            raise BadRequest(
                "Network requires port_security_enabled and subnet associated in order to apply "
                "security groups."
            )

    wishes = [FixedIpRequest(ip=request.fixed_ip)] if request.fixed_ip else None
    try:
        insert_port(session, port, wishes, groups if port.port_security_enabled else (), check)
    except NotFound as gone:
        raise BadRequest(gone.message) from None
    except Conflict as conflict:
        if conflict.wire_name == "IpAddressInUse":
            raise BadRequest(
                f"Fixed IP address {request.fixed_ip} is already in use on network {port.network_id}."
            ) from None
        raise _no_addresses(conflict, port.network_id) from None


def _no_addresses(conflict: Conflict, network_id: str) -> Conflict | BadRequest:
    if conflict.wire_name == "IpAddressGenerationFailure":
        return BadRequest(f"No fixed IP addresses available for network: {network_id}")
    return conflict


def _network_for(session: Session, project_id: str, network_id: str | None) -> Network:
    if network_id is not None:
        try:
            return get_network(session, network_id, project_id)
        except NotFound as missing:
            raise BadRequest(missing.message) from None
    usable = usable_networks(session, project_id)
    if len(usable) > 1:
        raise Conflict(
            "Multiple possible networks found, use a Network ID to be more specific.",
            "NetworkAmbiguous",
        )
    if not usable:
        raise BadRequest("No network is available to the project.")
    return usable[0]


_PORTS = select(Port).where(Port.device_id == bindparam("server_id"))


def ports_of(session: Session, server_id: str) -> list[Port]:
    """The server's ports in the order they were asked for."""
    rows = session.exec(_PORTS, params={"server_id": server_id})
    return sorted(rows, key=port_order)


def port_order(port: Port | Row[Any]) -> tuple[int, str]:
    """Sort key: the place of a card in its server. A row needs the columns ``extra`` and ``id``."""
    return int(port.extra.get("index", 0)), port.id


def release_server_ports(session: Session, server_id: str) -> None:
    """Delete the ports made for the server; unbind and keep those the user made. Repeatable."""
    for port in ports_of(session, server_id):
        if port.made_by_server:
            session.delete(port)
            continue
        port.device_id = port.device_owner = port.host = ""
        port.status = "DOWN"
        port.extra = {k: v for k, v in port.extra.items() if k not in ("index", "tag")}
        touch(port)
        session.add(port)
    session.flush()


def bind_server_ports(session: Session, server_id: str, host: str) -> None:
    """Say that the host runs the server's cards now: ACTIVE there. Repeatable."""
    _place(session, server_id, host, "ACTIVE")


def unbind_server_ports(session: Session, server_id: str) -> None:
    """Say that no host runs the server's cards now: DOWN, still the server's. Repeatable."""
    _place(session, server_id, "", "DOWN")


_PLACE = (
    update(Port)
    .where(
        col(Port.device_id) == bindparam("server_id"),
        or_(col(Port.host) != bindparam("place"), col(Port.status) != bindparam("is_now")),
    )
    .values(
        host=bindparam("place"),
        status=bindparam("is_now"),
        updated_at=bindparam("at"),
        revision=Port.revision + 1,
    )
)


def _place(session: Session, server_id: str, host: str, status: str) -> None:
    change(session, _PLACE, server_id=server_id, place=host, is_now=status, at=now())


GROUPS_OF_SERVER = (
    select(PortSecurityGroup.security_group_id)
    .join(Port, col(Port.id) == col(PortSecurityGroup.port_id))
    .where(Port.device_id == bindparam("server_id"))
)
"""The ids of the groups of a ``server_id``."""
_HOSTS_TO_REFRESH = using_groups(GROUPS_OF_SERVER)


def hosts_to_refresh(session: Session, server_id: str) -> set[str]:
    """The hosts whose filtering changes when this server's ports come or go: those with a port in its
    groups, or in a group whose rules admit them. Ask before the ports are released."""
    return {host for (host,) in fetch(session, _HOSTS_TO_REFRESH, server_id=server_id)}


def join_group(session: Session, server_id: str, project_id: str, ref: str) -> None:
    """Put every card of the server into the project's security group with this id or name. NotFound
    when there is none, Conflict when several have the name."""
    group = _find_group(session, project_id, ref)
    ports = ports_of(session, server_id)
    now_in = groups_of(session, [port.id for port in ports])
    for port in ports:
        set_groups(session, port, {*now_in[port.id], group})
        touch(port)


def leave_group(session: Session, server_id: str, project_id: str, ref: str) -> None:
    """Take every card of the server out of the group. NotFound when none is in it."""
    group = _find_group(session, project_id, ref)
    ports = ports_of(session, server_id)
    now_in = groups_of(session, [port.id for port in ports])
    members = [port for port in ports if group in now_in[port.id]]
    if not members:
        raise NotFound(f"Security group {ref:.255} not associated with the instance {server_id}")
    for port in members:
        set_groups(session, port, set(now_in[port.id]) - {group})
        touch(port)


def _find_group(session: Session, project_id: str, ref: str) -> str:
    try:
        return _resolve_groups(session, project_id, [ref])[0]
    except BadRequest as missing:
        raise NotFound(missing.message) from None
