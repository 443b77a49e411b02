"""Subnets: IPv4 address ranges of networks."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlmodel import Session, col

from api.context import Db, TheCloud
from api.idempotency import KeyedRoute
from api.network.wire import (
    MAX_BULK,
    Entry,
    Envelope,
    Id,
    Json,
    OwnedEntry,
    Plain,
    Reader,
    Text,
    TheLister,
    Writer,
    common,
    must_own,
    owner,
    scope,
    select_fields,
    settle,
    standard_columns,
)
from api.policy import Caller
from db.network.listing import Attributes
from db.network.networks import (
    add_subnet,
    address_owner,
    delete_subnet,
    get_network,
    get_subnet,
    hosts_on_network,
    subnet_not_found,
    touch,
    visible_subnets,
)
from db.network.quotas import check_network_quota
from db.network.tables import Subnet
from domain.addressing import (
    check_gateway,
    check_pools,
    default_gateway,
    default_pools,
    invalid,
    parse_address,
    parse_cidr,
    parse_prefix,
)
from domain.errors import Conflict

router = APIRouter(prefix="/v2.0/subnets", tags=["subnets"], route_class=KeyedRoute)
MAX_NAMESERVERS, MAX_ROUTES, MAX_POOLS = 5, 20, 50
_CONSTANT = {
    "ip_version": 4,
    "subnetpool_id": None,
    "ipv6_ra_mode": None,
    "ipv6_address_mode": None,
}
ATTRIBUTES = Attributes(
    Subnet,
    columns=standard_columns(Subnet)
    | {
        "name": col(Subnet.name),
        "network_id": col(Subnet.network_id),
        "cidr": col(Subnet.cidr),
        "gateway_ip": col(Subnet.gateway_ip),
        "enable_dhcp": col(Subnet.enable_dhcp),
    },
    missing=subnet_not_found,
    constants=_CONSTANT,
)


class Pool(Entry):
    """A range of addresses, both ends included."""

    start: Plain
    end: Plain


class HostRoute(Entry):
    """A route that guests learn by DHCP."""

    destination: Plain
    nexthop: Plain


Pools = Annotated[list[Pool], Field(max_length=MAX_POOLS)]
Nameservers = Annotated[list[Plain], Field(max_length=MAX_NAMESERVERS)]
Routes = Annotated[list[HostRoute], Field(max_length=MAX_ROUTES)]


class CreateSubnet(OwnedEntry):
    """A new subnet. Without ``gateway_ip`` the first address; null is none."""

    network_id: Id
    name: Text = ""
    description: Text = ""
    ip_version: int = 4
    cidr: Plain | None = None
    gateway_ip: Plain | None = None
    enable_dhcp: bool = True
    allocation_pools: Pools | None = None
    dns_nameservers: Nameservers | None = None
    host_routes: Routes | None = None
    subnetpool_id: None = None
    prefixlen: None = None
    ipv6_ra_mode: None = None
    ipv6_address_mode: None = None
    use_default_subnetpool: Literal[False] = False
    service_types: Annotated[list[Id], Field(max_length=0)] = Field(default_factory=list)


class UpdateSubnet(Entry):
    """A changed subnet."""

    name: Text = ""
    description: Text = ""
    gateway_ip: Plain | None = None
    enable_dhcp: bool = True
    allocation_pools: Pools = Field(default_factory=list)
    dns_nameservers: Nameservers = Field(default_factory=list)
    host_routes: Routes = Field(default_factory=list)
    service_types: Annotated[list[Id], Field(max_length=0)] = Field(default_factory=list)


class NewSubnets(Envelope):
    """One or several."""

    subnet: CreateSubnet | None = None
    subnets: Annotated[list[CreateSubnet], Field(max_length=MAX_BULK)] = Field(default_factory=list)


class ChangedSubnet(Entry):
    """The body of an update."""

    subnet: UpdateSubnet


def subnet_views(_session: Session, rows: Sequence[Subnet], _who: Caller) -> list[Json]:
    """Subnets as their callers see them."""
    return [
        common(row)
        | _CONSTANT
        | {
            "name": row.name,
            "network_id": row.network_id,
            "cidr": row.cidr,
            "gateway_ip": row.gateway_ip,
            "enable_dhcp": row.enable_dhcp,
            "allocation_pools": row.allocation_pools,
            "dns_nameservers": row.dns_nameservers,
            "host_routes": row.host_routes,
            "service_types": [],
            "tags": row.tags,
        }
        for row in rows
    ]


@router.get("")
def list_subnets(lister: TheLister, who: Reader) -> Json:
    """Own subnets and those of shared networks."""
    return lister.answer("subnets", ATTRIBUTES, visible_subnets(scope(who)), subnet_views)


@router.post("", status_code=201)
def create_subnets(body: NewSubnets, who: Writer, db: Db) -> Json:
    """Make one or several subnets, all or none."""
    made = [_create(entry, who, db) for entry in body.entries()]
    return body.answer(subnet_views(db, made, who))


def _create(entry: CreateSubnet, who: Caller, db: Session) -> Subnet:
    network = get_network(db, entry.network_id, scope(who), lock=True)
    must_own(who, network.project_id, "create_subnet")
    project_id = owner(who, entry)
    if entry.ip_version != 4:
        raise invalid(f"IP version {entry.ip_version} is not supported; only IPv4 is")
    if entry.cidr is None:
        raise invalid("a subnet needs a cidr: there are no subnet pools to take one from")
    check_network_quota(db, project_id, "subnet", 1)
    cidr = parse_cidr(entry.cidr)
    gateway: str | None = default_gateway(cidr)
    if "gateway_ip" in entry.model_fields_set:
        gateway = None if entry.gateway_ip is None else check_gateway(cidr, entry.gateway_ip)
    pools = (
        default_pools(cidr, gateway)
        if not entry.allocation_pools
        else check_pools(cidr, [p.model_dump() for p in entry.allocation_pools], gateway)
    )
    subnet = Subnet(
        network_id=network.id,
        project_id=project_id,
        name=entry.name,
        description=entry.description,
        cidr=str(cidr),
        gateway_ip=gateway,
        enable_dhcp=entry.enable_dhcp,
        allocation_pools=pools,
        dns_nameservers=_nameservers(entry.dns_nameservers or []),
        host_routes=_routes(entry.host_routes or []),
    )
    return add_subnet(db, subnet)


def _nameservers(given: Sequence[str]) -> list[str]:
    servers = [str(parse_address(text)) for text in given]
    if len(set(servers)) != len(servers):
        raise invalid("a DNS name server is given twice")
    return servers


def _routes(given: Sequence[HostRoute]) -> list[dict[str, str]]:
    return [
        {
            "destination": parse_prefix(route.destination),
            "nexthop": str(parse_address(route.nexthop)),
        }
        for route in given
    ]


@router.get("/{subnet_id}")
def show_subnet(subnet_id: str, request: Request, who: Reader, db: Db) -> Json:
    """One subnet."""
    subnet = get_subnet(db, subnet_id, scope(who))
    return {"subnet": select_fields(request, subnet_views(db, [subnet], who))[0]}


@router.put("/{subnet_id}")
def update_subnet(
    subnet_id: str, body: ChangedSubnet, who: Writer, db: Db, cloud: TheCloud
) -> Json:
    """Change a subnet; its range stays."""
    subnet = get_subnet(db, subnet_id, scope(who))
    network = get_network(db, subnet.network_id, None, lock=True)
    if not who.is_admin and who.project_id not in (subnet.project_id, network.project_id):
        must_own(who, subnet.project_id, "update_subnet")
    changes = _checked(db, subnet, body.subnet)
    for name, value in changes.items():
        setattr(subnet, name, value)
    touch(subnet)
    db.add(subnet)
    view = subnet_views(db, [subnet], who)[0]
    concerned = changes.keys() - {"name", "description", "allocation_pools"}
    settle(db, cloud, hosts_on_network(db, subnet.network_id) if concerned else set())
    return {"subnet": view}


def _checked(db: Session, subnet: Subnet, entry: UpdateSubnet) -> dict[str, Any]:
    """The changes, as they are to be stored."""
    cidr = IPv4Network(subnet.cidr)
    changes = entry.given("name", "description", "enable_dhcp")
    gateway = subnet.gateway_ip
    if "gateway_ip" in entry.model_fields_set:
        gateway = None if entry.gateway_ip is None else check_gateway(cidr, entry.gateway_ip)
        changes["gateway_ip"] = gateway
        if gateway is not None and (port_id := address_owner(db, subnet.id, gateway)):
            raise Conflict(
                f"Current gateway ip {gateway} already in use by port {port_id}. Unable to update.",
                "GatewayIpInUse",
            )
    pools = subnet.allocation_pools
    if "allocation_pools" in entry.model_fields_set:
        pools = [pool.model_dump() for pool in entry.allocation_pools]
        changes["allocation_pools"] = pools
    if changes.keys() & {"gateway_ip", "allocation_pools"}:
        pools = check_pools(cidr, pools, gateway)
        if "allocation_pools" in changes:
            changes["allocation_pools"] = pools
    if "dns_nameservers" in entry.model_fields_set:
        changes["dns_nameservers"] = _nameservers(entry.dns_nameservers)
    if "host_routes" in entry.model_fields_set:
        changes["host_routes"] = _routes(entry.host_routes)
    return changes


@router.delete("/{subnet_id}", status_code=204)
def remove_subnet(subnet_id: str, who: Writer, db: Db) -> Response:
    """Delete a subnet, unless a port has an address of it."""
    subnet = get_subnet(db, subnet_id, scope(who))
    network = get_network(db, subnet.network_id, None, lock=True)
    if who.project_id not in (subnet.project_id, network.project_id):
        must_own(who, subnet.project_id, "delete_subnet")
    delete_subnet(db, subnet)
    return Response(status_code=204)
