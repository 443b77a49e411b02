"""Security-group rules: what may be asked for, and what hosts are told."""

from __future__ import annotations

from domain.addressing import invalid
from domain.errors import BadRequest
from domain.guest import SecurityRule

PROTOCOLS: dict[str, int] = {
    "ah": 51,
    "dccp": 33,
    "egp": 8,
    "esp": 50,
    "gre": 47,
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "ipv6-encap": 41,
    "ipv6-frag": 44,
    "ipv6-icmp": 58,
    "icmpv6": 58,
    "ipv6-nonxt": 59,
    "ipv6-opts": 60,
    "ipv6-route": 43,
    "ospf": 89,
    "pgm": 113,
    "rsvp": 46,
    "sctp": 132,
    "tcp": 6,
    "udp": 17,
    "udplite": 136,
    "vrrp": 112,
}
_NAMED_FOR_HOSTS = {1: "icmp", 6: "tcp", 17: "udp"}
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
_ICMP = frozenset({1, 58})
_ONLY_V6 = frozenset({41, 43, 44, 58, 59, 60})


def check_protocol(text: str | None, ethertype: str) -> str | None:
    """The protocol in normal form; ``any`` is None. BadRequest for an unknown one."""
    if text is None or text.lower() in ("any", ""):
        return None
    name = text.lower()
    number = _number(name)
    if number is None:
        known = ", ".join(PROTOCOLS)
        raise BadRequest(
            f"Security group rule protocol {text:.40} not supported. Only protocol values [{known}] and "
            "integer representations [0 to 255] are supported.",
            "SecurityGroupRuleInvalidProtocol",
        )
    if name in PROTOCOLS and number in _ONLY_V6 and ethertype == "IPv4":
        raise BadRequest(
            f"Invalid ethertype {ethertype} for protocol {name}.",
            "SecurityGroupEthertypeConflictWithProtocol",
        )
    return name


def _number(protocol: str) -> int | None:
    if protocol in PROTOCOLS:
        return PROTOCOLS[protocol]
    return (
        int(protocol) if protocol.isascii() and protocol.isdigit() and int(protocol) < 256 else None
    )


def check_ports(
    protocol: str | None, low: int | None, high: int | None
) -> tuple[int | None, int | None]:
    """The port range (or icmp type and code) if the protocol allows it. BadRequest otherwise."""
    if low is None and high is None:
        return None, None
    number = None if protocol is None else _number(protocol)
    if number in _ICMP:
        return _check_icmp(low, high)
    if number is None:
        raise BadRequest(
            "Must also specify protocol if port range is given.",
            "SecurityGroupProtocolRequiredWithPorts",
        )
    if number not in _WITH_PORTS:
        raise BadRequest(
            f"Invalid port range for protocol {protocol}: it has no ports.",
            "SecurityGroupInvalidProtocolForPort",
        )
    if low is None or high is None or not 1 <= low <= high <= 65535:
        raise BadRequest(
            "For TCP/UDP protocols, port_range_min must be <= port_range_max, both from 1 to 65535.",
            "SecurityGroupInvalidPortRange",
        )
    return low, high


def _check_icmp(kind: int | None, code: int | None) -> tuple[int | None, int | None]:
    if kind is None:
        raise BadRequest(
            f"ICMP code (port-range-max) {code} is provided but ICMP type (port-range-min) is missing.",
            "SecurityGroupMissingIcmpType",
        )
    for field, attribute, value in (
        ("port-range-min", "type", kind),
        ("port-range-max", "code", code),
    ):
        if value is not None and not 0 <= value <= 255:
            raise BadRequest(
                f"Invalid value for ICMP {attribute} ({field}) {value}. It must be 0 to 255.",
                "SecurityGroupInvalidIcmpValue",
            )
    return kind, code


def check_remote(prefix: str | None, group_id: str | None) -> None:
    """A rule has one kind of peer."""
    if prefix is not None and group_id is not None:
        raise BadRequest(
            "Only remote_ip_prefix or remote_group_id may be provided.",
            "SecurityGroupMultipleRemoteEntites",
        )


def check_direction(direction: str) -> str:
    """``ingress`` or ``egress``."""
    if direction not in ("ingress", "egress"):
        raise invalid(f"'{direction:.40}' is not in ['ingress', 'egress']")
    return direction


def rule_for_hosts(
    *,
    ethertype: str,
    direction: str,
    protocol: str | None,
    ports: tuple[int | None, int | None],
    remote_cidr: str | None,
    remote_ips: tuple[str, ...] | None,
) -> SecurityRule | None:
    """The rule as hosts know it; None when it can match nothing on an IPv4 network."""
    if ethertype != "IPv4":
        return None
    number = None if protocol is None else _number(protocol)
    return SecurityRule(
        direction=direction,
        protocol=None if number is None else _NAMED_FOR_HOSTS.get(number, str(number)),
        port_min=ports[0],
        port_max=ports[1],
        remote_cidr=remote_cidr,
        remote_ips=remote_ips,
    )
