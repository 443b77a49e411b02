"""Security groups and anti-spoofing of one port, as the rules of nft chains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, collapse_addresses, ip_network

from domain.errors import GuestRefused
from domain.guest import NicSpec, SecurityRule
from virt.net.records import Port
from virt.net.segment import METADATA_IP

_PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "egp": 8,
    "udp": 17,
    "dccp": 33,
    "ipv6-encap": 41,
    "ipv6-route": 43,
    "ipv6-frag": 44,
    "rsvp": 46,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "ipv6-nonxt": 59,
    "ipv6-opts": 60,
    "ospf": 89,
    "vrrp": 112,
    "pgm": 113,
    "sctp": 132,
    "udplite": 136,
}
_WITH_PORTS = {6, 17, 33, 132, 136}
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def check(nic: NicSpec) -> None:
    """Raise GuestRefused for a card that cannot be expressed as rules."""
    try:
        IPv4Network(nic.ip)
        subnet = IPv4Network(nic.subnet.cidr)
        if nic.subnet.gateway_ip:
            IPv4Network(nic.subnet.gateway_ip)
        told = [
            *nic.subnet.dns_nameservers,
            *(word for row in nic.subnet.host_routes for word in row),
        ]
        for word in told:
            ip_network(word, strict=False)
        _prefixes(nic.allowed_pairs)
        for rule in nic.rules:
            _match(rule)
    except ValueError as error:
        raise GuestRefused(f"Port {nic.port_id} cannot be wired: {error}") from error
    if not _MAC.fullmatch(nic.mac.lower()):
        raise GuestRefused(f"Port {nic.port_id} has no usable MAC address: {nic.mac!r}")
    if nic.ip == nic.subnet.gateway_ip or not IPv4Network(nic.ip).subnet_of(subnet):
        raise GuestRefused(f"Port {nic.port_id} cannot have the address {nic.ip} on {subnet}")


def genuine(nic: NicSpec) -> list[str]:
    """Bridge rules for frames a guest sends: its own MAC and addresses only, and no DHCP server."""
    own = _prefixes((nic.ip, *nic.allowed_pairs))
    anything = any(prefix.prefixlen == 0 for prefix in own)
    listed = ", ".join(str(prefix) for prefix in own)
    rules = [
        f"ether saddr != {nic.mac.lower()} drop",
        f"arp saddr ether != {nic.mac.lower()} drop",
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        "ether type ip udp sport 67 drop",
    ]
    if not anything:
        # An address probe asks with 0.0.0.0; an answer never does.
        rules.append("arp operation request arp saddr ip 0.0.0.0 accept")
        rules.append(f"arp saddr ip != {{ {listed} }} drop")
        rules.append(f"ip saddr != {{ {listed} }} drop")
    return [*rules, "ether type ip accept", "ether type arp accept", "drop"]


def egress(port: Port) -> list[str]:
    """IP rules for what a guest sends: its groups decide, DHCP and metadata always pass."""
    admit = _admit(port, "egress")
    return [
        *_continuing(port, "original", "reply"),
        f"udp sport 68 udp dport 67 {admit}",
        f"ip daddr {METADATA_IP} tcp dport 80 {admit}",
        *_allowed(port, "egress"),
        "drop",
    ]


def ingress(port: Port, servers: Iterable[str]) -> list[str]:
    """IP rules for what a guest receives; ``servers`` are where its DHCP server answers from."""
    return [
        *_continuing(port, "reply", "original"),
        f"ip saddr {{ {', '.join(servers)} }} udp sport 67 udp dport 68 accept",
        *_allowed(port, "ingress"),
        "drop",
    ]


def _continuing(port: Port, as_client: str, as_server: str) -> list[str]:
    """Let packets of a connection pass that the port began (as client) or was allowed to accept.

    The connection's mark holds both ports' numbers, the client's above the server's. What is left of
    an earlier guest's connections has another number, so its successor at the address does not inherit
    them. Nor is it dropped outright: the rules decide, as if it were new.
    """
    states = "ct state established,related"
    return [
        f"ct direction {as_client} {states} ct mark and 0xffff0000 == {port.number << 16:#x} accept",
        f"ct direction {as_server} {states} ct mark and 0x0000ffff == {port.number:#x} accept",
        "ct state invalid drop",
    ]


def _allowed(port: Port, direction: str) -> list[str]:
    matches = (_match(rule) for rule in port.nic.rules if rule.direction == direction)
    admit = _admit(port, direction)
    # Rules of several groups often say the same thing.
    return list(dict.fromkeys(f"{match} {admit}" for match in matches if match is not None))


def _admit(port: Port, direction: str) -> str:
    """Accept, and note in the connection that this port's rules let it through."""
    kept, number = (
        (0xFFFF, port.number << 16) if direction == "egress" else (0xFFFF0000, port.number)
    )
    return f"ct mark set ct mark and {kept:#010x} or {number:#x} accept"


def _match(rule: SecurityRule) -> str | None:
    """A rule as an nft match; None if it can match no IPv4 packet. ValueError if it makes no sense."""
    if rule.direction not in {"ingress", "egress"}:
        raise ValueError(f"direction {rule.direction!r}")
    peer = _peer(rule)
    return None if peer is None else " ".join([*peer, *_service(rule)]) or "meta l4proto 0-255"


def _peer(rule: SecurityRule) -> list[str] | None:
    side = "saddr" if rule.direction == "ingress" else "daddr"
    found: list[str] = []
    if rule.remote_cidr is not None:
        prefix = ip_network(rule.remote_cidr, strict=False)
        if prefix.version != 4:
            return None
        if prefix.prefixlen:
            found.append(f"ip {side} {prefix}")
    if rule.remote_ips is not None:
        members = _prefixes(ip for ip in rule.remote_ips if ":" not in ip)
        if not members:
            return None
        if members[0].prefixlen:
            found.append(f"ip {side} {{ {', '.join(str(m) for m in members)} }}")
    return found


def _service(rule: SecurityRule) -> list[str]:
    """Protocol, ports, ICMP type and code."""
    number = _protocol_number(rule.protocol)
    if number is None:
        return []
    low, high = rule.port_min, rule.port_max
    if number == 1 and low is not None:
        return [f"icmp type {_within(low, 255)}"] + (
            [f"icmp code {_within(high, 255)}"] if high is not None else []
        )
    found = [f"meta l4proto {number}"]
    if number in _WITH_PORTS and (low is not None or high is not None):
        first = _within(low if low is not None else 0, 65535)
        last = _within(high if high is not None else first, 65535)
        if first > last:
            raise ValueError(f"port range {first}-{last}")
        found.append(f"th dport {first}-{last}" if last > first else f"th dport {first}")
    return found


def _protocol_number(protocol: str | None) -> int | None:
    if protocol is None or protocol.lower() in {"any", "0", ""}:
        return None
    named = _PROTOCOLS.get(protocol.lower())
    return named if named is not None else _within(int(protocol), 255)


def _within(value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise ValueError(f"{value} is not within 0-{most}")
    return value


def _prefixes(texts: Iterable[str]) -> list[IPv4Network]:
    return list(collapse_addresses(IPv4Network(text, strict=False) for text in texts))
