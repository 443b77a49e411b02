"""Queries on networks and subnets. ``project_id=None`` means: asked by an admin, sees everything."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from sqlalchemy import BindParameter, ColumnElement, bindparam, or_, true
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from db.network.tables import FixedIp, Network, Port, Subnet
from db.session import now
from domain.addressing import MAX_VNI, MIN_VNI, invalid, parse_cidr
from domain.errors import Conflict, NotFound

_RNG = random.SystemRandom()
_TRIES = 20


def touch(row: Network | Subnet | Port) -> None:
    """Note a change: newer time, next revision."""
    row.updated_at = now()
    row.revision += 1


def visible_networks(project_id: str | BindParameter[str] | None) -> ColumnElement[bool]:
    """Own and shared networks."""
    if project_id is None:
        return true()
    return or_(col(Network.project_id) == project_id, col(Network.shared))


def visible_subnets(project_id: str | None) -> ColumnElement[bool]:
    """Own subnets and those of own or shared networks."""
    if project_id is None:
        return true()
    seen = select(Network.id).where(visible_networks(project_id))
    return or_(col(Subnet.project_id) == project_id, col(Subnet.network_id).in_(seen))


def network_not_found(network_id: str) -> NotFound:
    """Neutron's words."""
    return NotFound(f"Network {network_id:.64} could not be found.", "NetworkNotFound")


def subnet_not_found(subnet_id: str) -> NotFound:
    """Neutron's words."""
    return NotFound(f"Subnet {subnet_id:.64} could not be found.", "SubnetNotFound")


def get_network(
    session: Session, network_id: str, project_id: str | None, *, lock: bool = False
) -> Network:
    """One visible network; ``lock`` keeps others from adding to it meanwhile. NotFound."""
    statement = _one_network(project_id is None, lock)
    asked = {"network_id": network_id, "project_id": project_id}
    found = session.exec(statement, params=asked).first()
    if found is None:
        raise network_not_found(network_id)
    return found


@cache
def _one_network(anyones: bool, lock: bool) -> SelectOfScalar[Network]:
    visible = visible_networks(None if anyones else bindparam("project_id"))
    statement = select(Network).where(Network.id == bindparam("network_id"), visible)
    return statement.with_for_update() if lock else statement


def get_subnet(session: Session, subnet_id: str, project_id: str | None) -> Subnet:
    """One visible subnet. NotFound."""
    statement = select(Subnet).where(Subnet.id == subnet_id, visible_subnets(project_id))
    found = session.exec(statement).first()
    if found is None:
        raise subnet_not_found(subnet_id)
    return found


_SUBNETS = (
    select(Subnet)
    .where(col(Subnet.network_id).in_(bindparam("network_ids", expanding=True)))
    .order_by(col(Subnet.created_at), col(Subnet.id))
)


def subnets_of(session: Session, network_ids: Sequence[str]) -> dict[str, list[Subnet]]:
    """Network id → its subnets, oldest first; every asked id is a key."""
    found: dict[str, list[Subnet]] = {network_id: [] for network_id in network_ids}
    for subnet in session.exec(_SUBNETS, params={"network_ids": list(network_ids)}):
        found[subnet.network_id].append(subnet)
    return found


def add_network(session: Session, network: Network, segment: int | None = None) -> Network:
    """Insert a network under the given or a free random VNI. Conflict when the given one is taken."""
    for _ in range(1 if segment is not None else _TRIES):
        network.segment = segment if segment is not None else _RNG.randint(MIN_VNI, MAX_VNI)
        try:
            with session.begin_nested():
                session.add(network)
        except IntegrityError:
            continue
        return network
    raise Conflict(
        f"Unable to create the network. The tunnel ID {network.segment} is in use.", "TunnelIdInUse"
    )


def delete_network(session: Session, network: Network) -> None:
    """Delete a network with its subnets. Conflict while it has ports."""
    refusal = Conflict(
        f"Unable to complete operation on network {network.id}. There are one or more ports still in "
        "use on the network.",
        "NetworkInUse",
    )
    if session.exec(select(Port.id).where(Port.network_id == network.id).limit(1)).first():
        raise refusal
    try:
        with session.begin_nested():
            for subnet in subnets_of(session, [network.id])[network.id]:
                session.delete(subnet)
            session.flush()
            session.delete(network)
    except IntegrityError:  # a port came between the look and the delete
        raise refusal from None


def add_subnet(session: Session, subnet: Subnet) -> Subnet:
    """Insert a subnet. BadRequest when it overlaps another one of the (locked) network."""
    wanted = parse_cidr(subnet.cidr)
    for other in subnets_of(session, [subnet.network_id])[subnet.network_id]:
        if wanted.overlaps(parse_cidr(other.cidr)):
            raise invalid(
                f"Requested subnet with cidr: {subnet.cidr} for network: {subnet.network_id} overlaps "
                "with another subnet"
            )
    session.add(subnet)
    session.flush()
    return subnet


def delete_subnet(session: Session, subnet: Subnet) -> None:
    """Delete a subnet. Conflict while a port has an address of it."""
    refusal = Conflict(
        f"Unable to complete operation on subnet {subnet.id}: One or more ports have an IP allocation "
        "from this subnet.",
        "SubnetInUse",
    )
    if session.exec(select(FixedIp.id).where(FixedIp.subnet_id == subnet.id).limit(1)).first():
        raise refusal
    try:
        with session.begin_nested():
            session.delete(subnet)
    except IntegrityError:  # an address was taken between the look and the delete
        raise refusal from None


def address_owner(session: Session, subnet_id: str, ip: str) -> str | None:
    """The id of the port that has this address of the subnet."""
    return session.exec(
        select(FixedIp.port_id).where(FixedIp.subnet_id == subnet_id, FixedIp.ip == ip)
    ).first()


def hosts_on_network(session: Session, network_id: str) -> set[str]:
    """The hosts that run a server with a port on the network."""
    rows = session.exec(
        select(Port.host).where(Port.network_id == network_id, Port.host != "").distinct()
    )
    return set(rows)


def has_foreign_ports(session: Session, network: Network) -> bool:
    """Whether another project has a port on the network, so that it must stay shared."""
    statement = select(Port.id).where(
        Port.network_id == network.id, Port.project_id != network.project_id
    )
    return session.exec(statement.limit(1)).first() is not None


_USABLE = (
    select(Network)
    .where(visible_networks(bindparam("project_id")), col(Network.admin_state_up))
    .order_by(col(Network.created_at), col(Network.id))
)


def usable_networks(session: Session, project_id: str) -> list[Network]:
    """The networks a server of the project may be put on unasked: its own, then the shared ones."""
    rows = session.exec(_USABLE, params={"project_id": project_id})
    return sorted(rows, key=lambda network: network.project_id != project_id)
