"""Ports: places of network cards, with their addresses and security groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlmodel import Session

from api.context import Db, TheCloud
from api.idempotency import KeyedRoute
from api.network.port_views import ATTRIBUTES, port_views
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
    admin_only,
    must_own,
    not_allowed,
    owner,
    scope,
    select_fields,
    settle,
)
from api.policy import Caller
from db.network.networks import get_network, subnets_of, touch
from db.network.ports import (
    FixedIpRequest,
    add_port,
    change_mac,
    fixed_ips_of,
    get_port,
    groups_of,
    remove_port,
    server_of,
    set_addresses,
    set_groups,
    visible_ports,
)
from db.network.quotas import check_network_quota
from db.network.security_groups import ensure_default_group, get_group, hosts_using_group
from db.network.tables import Network, Port
from domain.addressing import invalid, parse_mac, parse_prefix
from domain.errors import BadRequest, Conflict

router = APIRouter(prefix="/v2.0/ports", tags=["ports"], route_class=KeyedRoute)
MAX_FIXED_IPS, MAX_PAIRS, MAX_GROUPS = 5, 10, 50
_ADMIN_ONLY = ("host_id", "profile")
_PLAIN = ("name", "description", "admin_state_up", "device_id", "device_owner")


class FixedIpWish(Entry):
    """A subnet, an address, or both."""

    subnet_id: Id | None = None
    ip_address: Plain | None = None


class AddressPair(Entry):
    """A further source address, or prefix, that the port may use."""

    ip_address: Plain
    mac_address: Plain | None = None


class PortAttributes(Entry):
    """What create and update have in common."""

    name: Text = ""
    description: Text = ""
    admin_state_up: bool = True
    device_id: Text = ""
    device_owner: Text = ""
    mac_address: Plain | None = None
    fixed_ips: Annotated[list[FixedIpWish], Field(max_length=MAX_FIXED_IPS)] | None = None
    security_groups: Annotated[list[Id], Field(max_length=MAX_GROUPS)] | None = None
    allowed_address_pairs: Annotated[list[AddressPair], Field(max_length=MAX_PAIRS)] | None = None
    port_security_enabled: bool | None = None
    vnic_type: Annotated[Literal["normal"], Field(alias="binding:vnic_type")] = "normal"
    host_id: Annotated[Literal[""] | None, Field(alias="binding:host_id")] = None
    profile: Annotated[dict[str, Any] | None, Field(alias="binding:profile", max_length=0)] = None
    extra_dhcp_opts: Annotated[list[Json], Field(max_length=0)] | None = None


class CreatePort(OwnedEntry, PortAttributes):
    """A new port."""

    network_id: Id


class NewPorts(Envelope):
    """One or several."""

    port: CreatePort | None = None
    ports: Annotated[list[CreatePort], Field(max_length=MAX_BULK)] = Field(default_factory=list)


class ChangedPort(Entry):
    """The body of an update."""

    port: PortAttributes


@router.get("")
def list_ports(lister: TheLister, who: Reader) -> Json:
    """Own ports and those on own networks."""
    return lister.answer("ports", ATTRIBUTES, visible_ports(scope(who)), port_views)


@router.post("", status_code=201)
def create_ports(body: NewPorts, who: Writer, db: Db, cloud: TheCloud) -> Json:
    """Make one or several ports, all or none."""
    made = [_create(entry, who, db) for entry in body.entries()]
    answer = body.answer(port_views(db, made, who))
    settle(db, cloud, _concerned(db, made))
    return answer


def _create(entry: CreatePort, who: Caller, db: Session) -> Port:
    network = get_network(db, entry.network_id, scope(who))
    project_id = owner(who, entry)
    _check_rights(entry, who, network, "create_port")
    check_network_quota(db, project_id, "port", 1)
    security = entry.port_security_enabled
    port = Port(
        network_id=network.id,
        project_id=project_id,
        mac=parse_mac(entry.mac_address) if entry.mac_address else "",
        port_security_enabled=network.port_security_enabled if security is None else security,
        **entry.given(*_PLAIN),
    )
    _check_device(db, port.device_id)
    groups = _groups(db, entry.security_groups, port)
    _allow_pairs(port, entry.allowed_address_pairs or [])
    return add_port(db, port, _wishes(entry.fixed_ips), groups)


def _check_rights(entry: PortAttributes, who: Caller, network: Network, action: str) -> None:
    """Some attributes could harm others on a shared network: its owner and admins may set them."""
    admin_only(who, entry, _ADMIN_ONLY, action)
    if who.is_admin or network.project_id == who.project_id:
        return
    if entry.device_owner.startswith("network:"):
        raise not_allowed(f"{action}:device_owner")
    if any(wish.ip_address for wish in entry.fixed_ips or ()):
        raise not_allowed(f"{action}:fixed_ips:ip_address")
    for name in ("mac_address", "port_security_enabled", "allowed_address_pairs"):
        if getattr(entry, name) is not None:
            raise not_allowed(f"{action}:{name}")


def _check_device(db: Session, device_id: str) -> None:
    if server_of(db, device_id) is not None:
        raise invalid("device_id names a server: attach the port through the compute service")


def _groups(db: Session, asked: Sequence[str] | None, port: Port) -> list[str]:
    """Ids of the groups a new port gets."""
    if asked is None:
        if not port.port_security_enabled:
            return []
        return [ensure_default_group(db, port.project_id).id]
    if asked and not port.port_security_enabled:
        raise BadRequest(
            "Port security must be enabled and port must have an IP address in order to use security "
            "groups.",
            "PortSecurityAndIPRequiredForSecurityGroups",
        )
    return [get_group(db, group_id, port.project_id).id for group_id in asked]


def _wishes(fixed_ips: Sequence[FixedIpWish] | None) -> list[FixedIpRequest] | None:
    if fixed_ips is None:
        return None
    return [FixedIpRequest(subnet_id=wish.subnet_id, ip=wish.ip_address) for wish in fixed_ips]


def _allow_pairs(port: Port, pairs: Sequence[AddressPair]) -> None:
    if pairs and not port.port_security_enabled:
        raise Conflict(
            "Port Security must be enabled in order to have allowed address pairs on a port.",
            "AddressPairAndPortSecurityRequired",
        )
    checked: list[dict[str, str]] = []
    for pair in pairs:
        prefix = parse_prefix(pair.ip_address)
        entry = {"ip_address": prefix.removesuffix("/32")}
        if pair.mac_address is not None:
            entry["mac_address"] = parse_mac(pair.mac_address)
            if port.mac and entry["mac_address"] != port.mac:
                raise invalid("an allowed address pair cannot have another MAC than its port")
        if entry["ip_address"] in [known["ip_address"] for known in checked]:
            raise BadRequest(
                f"Request contains duplicate address pair: ip_address {pair.ip_address}.",
                "DuplicateAddressPairInRequest",
            )
        checked.append({"ip_address": entry["ip_address"]})
    port.allowed_address_pairs = checked


@router.get("/{port_id}")
def show_port(port_id: str, request: Request, who: Reader, db: Db) -> Json:
    """One port."""
    port = get_port(db, port_id, scope(who))
    return {"port": select_fields(request, port_views(db, [port], who))[0]}


@router.put("/{port_id}")
def update_port(port_id: str, body: ChangedPort, who: Writer, db: Db, cloud: TheCloud) -> Json:
    """Change a port."""
    port = get_port(db, port_id, scope(who), lock=True)
    must_own(who, port.project_id, "update_port")
    addressed = body.port.fixed_ips is not None  # then no subnet may go meanwhile
    network = get_network(db, port.network_id, None, lock=addressed)
    _check_rights(body.port, who, network, "update_port")
    before = _concerned(db, [port])
    _change(db, port, body.port)
    touch(port)
    db.add(port)
    db.flush()
    view = port_views(db, [port], who)[0]
    settle(db, cloud, before | _concerned(db, [port]))
    return {"port": view}


def _change(db: Session, port: Port, entry: PortAttributes) -> None:
    plain = entry.given(*_PLAIN)
    attached = server_of(db, port.device_id) is not None
    if attached:
        _refuse_on_attached(db, port, entry)
    elif plain.get("device_id", port.device_id) != port.device_id:
        _check_device(db, plain["device_id"])
    for name, value in plain.items():
        setattr(port, name, value)
    if entry.mac_address is not None:
        change_mac(db, port, parse_mac(entry.mac_address))
    if entry.port_security_enabled is not None:
        port.port_security_enabled = entry.port_security_enabled
    if "allowed_address_pairs" in entry.model_fields_set:
        _allow_pairs(port, entry.allowed_address_pairs or [])
    elif port.allowed_address_pairs and not port.port_security_enabled:
        _allow_pairs(port, [AddressPair(**pair) for pair in port.allowed_address_pairs])
    if entry.fixed_ips is not None:
        subnets = subnets_of(db, [port.network_id])[port.network_id]
        set_addresses(db, port, _wishes(entry.fixed_ips) or [], subnets)
    _change_groups(db, port, entry)


def _refuse_on_attached(db: Session, port: Port, entry: PortAttributes) -> None:
    """A server's card keeps its server, its MAC and at least one address."""
    for name, now in (("device_id", port.device_id), ("device_owner", port.device_owner)):
        if entry.given(name).get(name, now) != now:
            raise _attached(port)
    if entry.mac_address is not None and parse_mac(entry.mac_address) != port.mac:
        raise Conflict(
            f"Unable to complete operation on port {port.id}, port is already bound, old_mac {port.mac}, "
            f"new_mac {entry.mac_address:.64}",
            "PortBound",
        )
    if entry.fixed_ips is not None and not entry.fixed_ips and fixed_ips_of(db, [port.id])[port.id]:
        raise invalid("the port of a server needs an address")


def _attached(port: Port) -> Conflict:
    return Conflict(
        f"Unable to complete operation on port {port.id} for network {port.network_id}. Port already has "
        f"an attached device {port.device_id}.",
        "PortInUse",
    )


def _change_groups(db: Session, port: Port, entry: PortAttributes) -> None:
    if "security_groups" in entry.model_fields_set:
        set_groups(db, port, _groups(db, entry.security_groups or [], port))
    elif not port.port_security_enabled and groups_of(db, [port.id])[port.id]:
        raise Conflict(
            "Port has security group associated. Cannot disable port security or IP address until "
            "security group is removed.",
            "PortSecurityPortHasSecurityGroup",
        )


@router.delete("/{port_id}", status_code=204)
def delete_port(port_id: str, who: Writer, db: Db, cloud: TheCloud) -> Response:
    """Delete a port that no server has; its addresses are free again."""
    port = get_port(db, port_id, scope(who), lock=True)
    hosts = _concerned(db, [port])
    remove_port(db, port)
    settle(db, cloud, hosts)
    return Response(status_code=204)


def _concerned(db: Session, ports: Sequence[Port]) -> set[str]:
    """The hosts that filter by these ports: their own, and those of groups that admit them."""
    groups = {group for ids in groups_of(db, [p.id for p in ports]).values() for group in ids}
    return {p.host for p in ports if p.host} | hosts_using_group(db, groups)
