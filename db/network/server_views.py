"""What others read of servers' ports: cards for hosts, addresses and groups for views.

Each function asks a constant number of questions, however many servers it is asked about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from db.network.ports import groups_of
from db.network.security_groups import rules_of
from db.network.server_ports import GROUPS_OF_SERVER, port_order
from db.network.tables import (
    FixedIp,
    Network,
    Port,
    PortSecurityGroup,
    SecurityGroup,
    SecurityGroupRule,
    Subnet,
)
from db.servers import Server
from db.session import fetch
from domain.firewall import rule_for_hosts
from domain.guest import NicSpec, SecurityRule, SubnetSpec


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One address of a server as the compute API shows it."""

    network: str
    """The network's name."""
    ip: str
    version: int
    mac: str
    type: str = "fixed"
    port_id: str = ""
    network_id: str = ""


_ADDRESSES = (
    sa.select(
        col(Port.device_id), col(Port.extra), col(Port.id), col(Port.network_id), col(Port.mac),
        col(Network.name).label("network"), col(FixedIp.ip),
    )
    .join(Network, col(Network.id) == col(Port.network_id))
    .join(FixedIp, col(FixedIp.port_id) == col(Port.id))
    .where(col(Port.device_id).in_(sa.bindparam("server_ids", expanding=True)))
)  # fmt: skip
_GROUPS = (
    sa.select(col(Port.device_id), col(SecurityGroup.name))
    .join(PortSecurityGroup, col(PortSecurityGroup.port_id) == col(Port.id))
    .join(SecurityGroup, col(SecurityGroup.id) == col(PortSecurityGroup.security_group_id))
    .where(col(Port.device_id).in_(sa.bindparam("server_ids", expanding=True)))
)


def server_addresses(
    session: Session, server_ids: Collection[str]
) -> dict[str, list[ServerAddress]]:
    """Server id → its addresses in the order of its cards; every asked id is a key."""
    found: dict[str, list[ServerAddress]] = {server_id: [] for server_id in server_ids}
    cards = fetch(session, _ADDRESSES, server_ids=list(server_ids))
    for row in sorted(cards, key=lambda row: (port_order(row), row.ip)):
        found[row.device_id].append(
            ServerAddress(
                network=row.network,
                ip=row.ip,
                version=4,
                mac=row.mac,
                port_id=row.id,
                network_id=row.network_id,
            )
        )
    return found


def server_security_groups(session: Session, server_ids: Collection[str]) -> dict[str, list[str]]:
    """Server id → names of the groups of its ports, sorted; every asked id is a key."""
    found: dict[str, set[str]] = {server_id: set() for server_id in server_ids}
    for server_id, name in fetch(session, _GROUPS, server_ids=list(server_ids)):
        found[server_id].add(name)
    return {server_id: sorted(names) for server_id, names in found.items()}


_CARDS = (
    sa.select(
        col(Port.id), col(Port.device_id), col(Port.extra), col(Port.network_id), col(Port.mac),
        col(Port.port_security_enabled), col(Port.allowed_address_pairs), col(Network.segment),
        col(Network.mtu), sa.and_(col(Port.admin_state_up), col(Network.admin_state_up)).label("up"),
        col(Server.hostname),
    )
    .join(Network, col(Network.id) == col(Port.network_id))
    .join(Server, col(Server.id) == col(Port.device_id))
    .where(col(Port.device_id).in_(sa.bindparam("server_ids", expanding=True)))
)  # fmt: skip
_IPS = (
    sa.select(
        col(FixedIp.port_id), col(FixedIp.ip), col(Subnet.id), col(Subnet.cidr), col(Subnet.gateway_ip),
        col(Subnet.dns_nameservers), col(Subnet.host_routes), col(Subnet.enable_dhcp),
    )
    .join(Subnet, col(Subnet.id) == col(FixedIp.subnet_id))
    .where(col(FixedIp.port_id).in_(sa.bindparam("port_ids", expanding=True)))
    .order_by(col(FixedIp.ip))
)  # fmt: skip


def nic_specs(
    session: Session, server_ids: Sequence[str], *, with_rules: bool = True
) -> dict[str, tuple[NicSpec, ...]]:
    """Server id → its cards with subnets and resolved rules; every asked id is a key.

    A port without an address is no card. Further addresses of a port are among its allowed pairs. Without
    rules, which name every member of a group, it costs the same in a project of any size.
    """
    cards = fetch(session, _CARDS, server_ids=list(server_ids))
    port_ids = [card.id for card in cards]
    addresses: dict[str, list[sa.Row[Any]]] = defaultdict(list)
    for address in fetch(session, _IPS, port_ids=port_ids):
        addresses[address.port_id].append(address)
    rules = _rules_by_port(session, port_ids) if with_rules else dict.fromkeys(port_ids, ())
    found: dict[str, list[NicSpec]] = {server_id: [] for server_id in server_ids}
    for card in sorted(cards, key=port_order):
        if ips := addresses[card.id]:
            found[card.device_id].append(_nic(card, ips, rules[card.id]))
    return {server_id: tuple(nics) for server_id, nics in found.items()}


def _nic(card: sa.Row[Any], ips: Sequence[sa.Row[Any]], rules: tuple[SecurityRule, ...]) -> NicSpec:
    first, *more = ips
    filtered = card.port_security_enabled or not card.up  # down: nothing is allowed
    return NicSpec(
        port_id=card.id,
        network_id=card.network_id,
        segment=card.segment,
        mac=card.mac,
        ip=first.ip,
        subnet=SubnetSpec(
            id=first.id,
            cidr=first.cidr,
            gateway_ip=first.gateway_ip,
            dns_nameservers=tuple(first.dns_nameservers),
            host_routes=tuple((r["destination"], r["nexthop"]) for r in first.host_routes),
            enable_dhcp=first.enable_dhcp,
        ),
        mtu=card.mtu,
        hostname=card.hostname,
        port_security=filtered,
        rules=rules if card.port_security_enabled and card.up else (),
        allowed_pairs=(
            *(address.ip for address in more),
            *(pair["ip_address"] for pair in card.allowed_address_pairs),
        ),
    )


def _rules_by_port(
    session: Session, port_ids: Sequence[str]
) -> dict[str, tuple[SecurityRule, ...]]:
    """Port id → the rules of its groups, with remote groups as their members' addresses."""
    memberships = groups_of(session, port_ids)
    rules = rules_of(session, sorted({g for groups in memberships.values() for g in groups}))
    members = _member_addresses(session, [rule for listed in rules.values() for rule in listed])
    resolved = {
        group: [r for rule in listed if (r := _resolve(rule, members)) is not None]
        for group, listed in rules.items()
    }
    # To compare rules is to read all their members, so it is done once for ports in the same groups.
    shared = {
        groups: tuple(dict.fromkeys(rule for group in groups for rule in resolved[group]))
        for groups in {tuple(groups) for groups in memberships.values()}
    }
    return {port_id: shared[tuple(groups)] for port_id, groups in memberships.items()}


def _resolve(
    rule: SecurityGroupRule, members: Mapping[str, tuple[str, ...]]
) -> SecurityRule | None:
    remote = rule.remote_group_id
    return rule_for_hosts(
        ethertype=rule.ethertype,
        direction=rule.direction,
        protocol=rule.protocol,
        ports=(rule.port_range_min, rule.port_range_max),
        remote_cidr=rule.remote_ip_prefix,
        remote_ips=None if remote is None else members.get(remote, ()),
    )


_MEMBERS = (
    sa.select(
        col(PortSecurityGroup.security_group_id), col(FixedIp.ip), col(Port.allowed_address_pairs)
    )
    .join(Port, col(Port.id) == col(PortSecurityGroup.port_id))
    .join(FixedIp, col(FixedIp.port_id) == col(Port.id))
    .where(col(PortSecurityGroup.security_group_id).in_(sa.bindparam("group_ids", expanding=True)))
)


def _member_addresses(
    session: Session, rules: Sequence[SecurityGroupRule]
) -> dict[str, tuple[str, ...]]:
    """Remote group id → addresses and allowed pairs of its ports, sorted."""
    wanted = {rule.remote_group_id for rule in rules if rule.remote_group_id is not None}
    found: dict[str, set[str]] = defaultdict(set)
    for group, ip, pairs in fetch(session, _MEMBERS, group_ids=sorted(wanted)):
        found[group].update([ip, *(pair["ip_address"] for pair in pairs)])
    return {group: tuple(sorted(ips)) for group, ips in found.items()}


def groups_of_server(session: Session, server_id: str) -> list[SecurityGroup]:
    """The security groups that any of the server's ports is in, by name."""
    statement = select(SecurityGroup).where(col(SecurityGroup.id).in_(GROUPS_OF_SERVER))
    ordered = statement.order_by(SecurityGroup.name, SecurityGroup.id)
    return list(session.exec(ordered, params={"server_id": server_id}))
