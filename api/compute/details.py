"""What else can be asked about one server: addresses, groups, cards, password, topology."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

from fastapi import APIRouter
from pydantic import Field
from sqlmodel import Session

from api.compute.server_views import Address, shown_addresses
from api.compute.servers import scope_of
from api.context import Db, allow
from api.microversion import Route, View, since, versions
from api.policy import Caller
from db.network import (
    Port,
    SecurityGroup,
    SecurityGroupRule,
    fixed_ips_of,
    groups_of_server,
    ports_of,
    rules_of,
    server_addresses,
)
from db.servers import Server, get_server
from domain.errors import NotFound, NotImplementedHere

router = APIRouter(route_class=Route)
_SERVER = "/v2.1/servers/{server_id}"
_INTERFACES = _SERVER + "/os-interface"
_PASSWORD = _SERVER + "/os-server-password"
_VOLUMES = _SERVER + "/os-volume_attachments"


class AddressesView(View):
    """Network name → addresses."""

    addresses: dict[str, list[Address]]


class FixedIpView(View):
    """An address of a card."""

    subnet_id: str
    ip_address: str


class InterfaceView(View):
    """A network card."""

    port_state: str
    fixed_ips: list[FixedIpView]
    port_id: str
    net_id: str
    mac_addr: str
    tag: Annotated[str | None, since("2.70")] = None


class InterfaceList(View):
    """Every card, in order."""

    attachments: Annotated[list[InterfaceView], Field(alias="interfaceAttachments")]


class ShownInterface(View):
    """One card."""

    attachment: Annotated[InterfaceView, Field(alias="interfaceAttachment")]


class SecurityGroupList(View):
    """The groups of a server's cards, in Nova's own old form."""

    security_groups: list[dict[str, Any]]


class PasswordView(View):
    """What the guest posted, encrypted with the user's key; empty when it did not."""

    password: str


class TopologyView(View):
    """NUMA nodes of the guest; none when it has no topology of its own."""

    nodes: list[dict[str, Any]]
    pagesize_kb: int | None


def _server(db: Session, server_id: str, who: Caller) -> Server:
    return get_server(db, server_id, scope_of(who))


def _refuse(what: str) -> NoReturn:
    raise NotImplementedHere(f"{what} is not offered by this cloud.")


@router.get(_SERVER + "/ips", response_model_exclude_unset=True)
def index_addresses(
    server_id: str, who: Annotated[Caller, allow("servers:addresses")], db: Db
) -> AddressesView:
    """All addresses by network."""
    server = _server(db, server_id, who)
    found = server_addresses(db, [server.id])[server.id]
    return AddressesView(addresses=shown_addresses(found, extended=False))


@router.get(_SERVER + "/ips/{label}", response_model_exclude_unset=True)
def show_addresses_of_network(
    server_id: str, label: str, who: Annotated[Caller, allow("servers:addresses")], db: Db
) -> dict[str, list[Address]]:
    """The addresses on one network."""
    networks = index_addresses(server_id, who, db).addresses
    if label not in networks:
        raise NotFound("Instance is not a member of specified network")
    return {label: networks[label]}


@router.get(_SERVER + "/os-security-groups")
def list_security_groups_of_server(
    server_id: str, who: Annotated[Caller, allow("servers:security_groups")], db: Db
) -> SecurityGroupList:
    """The security groups of the server's cards, with their rules."""
    server = _server(db, server_id, who)
    groups = groups_of_server(db, server.id)
    rules = rules_of(db, [group.id for group in groups])
    names = {group.id: group.name for group in groups}
    shown = [_group(group, rules[group.id], names) for group in groups]
    return SecurityGroupList(security_groups=shown)


def _group(
    group: SecurityGroup, rules: list[SecurityGroupRule], names: dict[str, str]
) -> dict[str, Any]:
    return {
        "id": group.id,
        "name": group.name,
        "description": group.description,
        "tenant_id": group.project_id,
        "rules": [_rule(rule, names) for rule in rules if rule.direction == "ingress"],
    }


def _rule(rule: SecurityGroupRule, names: dict[str, str]) -> dict[str, Any]:
    low, high = rule.port_range_min, rule.port_range_max
    if rule.protocol is not None and low is None and high is None:
        low, high = (-1, -1) if rule.protocol == "icmp" else (1, 65535)
    remote = rule.remote_group_id
    anybody = "0.0.0.0/0" if rule.ethertype == "IPv4" else "::/0"
    return {
        "id": rule.id,
        "parent_group_id": rule.security_group_id,
        "ip_protocol": rule.protocol,
        "from_port": low,
        "to_port": high,
        "ip_range": {} if remote else {"cidr": rule.remote_ip_prefix or anybody},
        "group": {"name": names.get(remote, remote), "tenant_id": rule.project_id}
        if remote
        else {},
    }


@router.get(_INTERFACES)
def list_interfaces(
    server_id: str, who: Annotated[Caller, allow("servers:interfaces")], db: Db
) -> InterfaceList:
    """The server's network cards."""
    server = _server(db, server_id, who)
    return InterfaceList(attachments=_interfaces(db, ports_of(db, server.id)))


@router.get(_INTERFACES + "/{port_id}")
def show_interface(
    server_id: str,
    port_id: str,
    who: Annotated[Caller, allow("servers:interfaces")],
    db: Db,
) -> ShownInterface:
    """One network card."""
    server = _server(db, server_id, who)
    mine = [port for port in ports_of(db, server.id) if port.id == port_id]
    if not mine:
        raise NotFound(f"Instance {server.id} does not have a port with id {port_id:.64}")
    return ShownInterface(attachment=_interfaces(db, mine)[0])


def _interfaces(db: Session, ports: list[Port]) -> list[InterfaceView]:
    addresses = fixed_ips_of(db, [port.id for port in ports])
    return [
        InterfaceView(
            port_state=port.status,
            fixed_ips=[
                FixedIpView(subnet_id=fixed.subnet_id, ip_address=fixed.ip)
                for fixed in addresses[port.id]
            ],
            port_id=port.id,
            net_id=port.network_id,
            mac_addr=port.mac,
            tag=port.extra.get("tag"),
        )
        for port in ports
    ]


@router.post(_INTERFACES)
def attach_interface(
    server_id: str, who: Annotated[Caller, allow("servers:interfaces:write")], db: Db
) -> None:
    """Not offered."""
    _server(db, server_id, who)
    _refuse("Attaching interfaces")


@router.delete(_INTERFACES + "/{port_id}")
def detach_interface(
    server_id: str,
    port_id: str,
    who: Annotated[Caller, allow("servers:interfaces:write")],
    db: Db,
) -> None:
    """Not offered."""
    _server(db, server_id, who)
    _refuse("Detaching interfaces")


@router.get(_PASSWORD)
def show_password(
    server_id: str, who: Annotated[Caller, allow("servers:password")], db: Db
) -> PasswordView:
    """The password as the guest encrypted it."""
    return PasswordView(password=_server(db, server_id, who).guest_password or "")


@router.delete(_PASSWORD, status_code=204)
def clear_password(
    server_id: str, who: Annotated[Caller, allow("servers:password:clear")], db: Db
) -> None:
    """Forget what the guest posted; the guest keeps its password."""
    server = _server(db, server_id, who)
    server.guest_password = None
    db.add(server)


@router.get(_SERVER + "/diagnostics")
def show_diagnostics(
    server_id: str, who: Annotated[Caller, allow("servers:diagnostics")], db: Db
) -> None:
    """Not offered."""
    _server(db, server_id, who)
    _refuse("Server diagnostics")


@router.get(_SERVER + "/topology")
@versions("2.78")
def show_topology(
    server_id: str, who: Annotated[Caller, allow("servers:topology")], db: Db
) -> TopologyView:
    """Guests have no NUMA topology of their own here."""
    _server(db, server_id, who)
    return TopologyView(nodes=[], pagesize_kb=None)


@router.get(_VOLUMES)
def list_volume_attachments(
    server_id: str, who: Annotated[Caller, allow("servers:volumes")], db: Db
) -> dict[str, list[Any]]:
    """Servers have no volumes."""
    _server(db, server_id, who)
    return {"volumeAttachments": []}


@router.post(_VOLUMES)
def attach_volume(
    server_id: str, who: Annotated[Caller, allow("servers:volumes:write")], db: Db
) -> None:
    """Not offered."""
    _server(db, server_id, who)
    _refuse("Attaching volumes")


@router.get(_SERVER + "/migrations")
@versions("2.23")
def list_migrations_of_server(
    server_id: str, who: Annotated[Caller, allow("servers:migrations")], db: Db
) -> dict[str, list[Any]]:
    """Servers do not move between hosts."""
    _server(db, server_id, who)
    return {"migrations": []}


@router.post(_SERVER + "/remote-consoles")
@versions("2.6")
def open_remote_console(
    server_id: str, who: Annotated[Caller, allow("servers:remote_consoles")], db: Db
) -> None:
    """Not offered; os-getConsoleOutput is."""
    _server(db, server_id, who)
    _refuse("A remote console")
