"""The host's packet filter: who a guest may pretend to be, and what its security groups let through.

Two nftables tables named ``duranova``. The ``bridge`` one is stateless: it drops forged frames and marks
packets with the port they come from, then with the port they go to. The ``ip`` one sees the same packets
by way of br_netfilter, where connection tracking works: in *prerouting* the mark means the sender, whose
egress rules apply; in *forward* it means the receiver, whose ingress rules apply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, collapse_addresses, ip_network

from domain.errors import GuestRefused
from domain.guest import NicSpec, SecurityRule
from virt.net import kernel
from virt.net.records import Port
from virt.net.segment import METADATA_IP, Segment

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

_BRIDGE_TABLE = """
add table bridge duranova
delete table bridge duranova
table bridge duranova {
  set links { type ifname; }
  map marks { type ifname : mark; }
  map guards { type ifname : verdict; }
  map shields { type ifname : verdict; }
  map tunnels { type ifname : verdict; }
  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    iifname @links meta mark set 0
    meta mark set iifname map @marks
    iifname vmap @guards
    iifname vmap @tunnels
  }
  chain input {
    type filter hook input priority -200; policy accept;
    iifname @links drop
  }
  chain forward {
    type filter hook forward priority -200; policy accept;
    iifname @links meta mark set 0
    meta mark set oifname map @marks
    oifname vmap @shields
    oifname vmap @tunnels
  }
  chain postrouting {
    type filter hook postrouting priority 300; policy accept;
    oifname @links meta mark set 0
  }
}
"""

_IP_TABLE = """
add table ip duranova
delete table ip duranova
table ip duranova {
  set bridges { type ifname; }
  set uplinks { type ifname; }
  set transits { type ipv4_addr; }
  set peers { type ipv4_addr; }
  map zones { typeof iifname : ct zone; }
  map egress { type mark : verdict; }
  map ingress { type mark : verdict; }
  chain zone {
    type filter hook prerouting priority -300; policy accept;
    ct zone set iifname map @zones
  }
  chain sender {
    type filter hook prerouting priority -150; policy accept;
    iifname @bridges meta mark vmap @egress
  }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname @bridges meta mark vmap @ingress
    iifname @bridges accept
    iifname @uplinks oifname @uplinks drop
    oifname @uplinks tcp flags syn tcp option maxseg size set rt mtu
    iifname @uplinks tcp flags syn tcp option maxseg size set rt mtu
    oifname @uplinks ct state established,related accept
    oifname @uplinks drop
  }
  chain input {
    type filter hook input priority 0; policy accept;
    iifname @uplinks ct state established,related accept
%(resolvers)s
    iifname @uplinks drop
%(tunnels)s
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
%(nat)s
  }
}
"""


def tables(nat: bool, resolvers: Sequence[str], peers: Sequence[str]) -> str:
    """Script: both tables anew and empty. To be loaded together with what fills them."""
    servers = ", ".join(resolvers)
    ask = f"    iifname @uplinks ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept"
    guarded = "    udp dport 4789 ip saddr != @peers drop"
    parts = {
        "resolvers": ask if resolvers else "",
        "tunnels": guarded if peers else "",
        "nat": "    ip saddr @transits oifname != @uplinks masquerade" if nat else "",
    }
    fill = f"add element ip duranova peers {{ {', '.join(peers)} }}\n" if peers else ""
    return _BRIDGE_TABLE + _IP_TABLE % parts + fill


def network_on(segment: Segment) -> str:
    """Script: know a network's devices, its conntrack zone and its transit address."""
    return (
        f'add element bridge duranova links {{ "{segment.gateway_link}", "{segment.tunnel}" }}\n'
        f'add element ip duranova bridges {{ "{segment.bridge}" }}\n'
        f'add element ip duranova uplinks {{ "{segment.uplink}" }}\n'
        f"add element ip duranova transits {{ {segment.inner} }}\n"
        f'add element ip duranova zones {{ "{segment.bridge}" : {segment.network.zone} }}\n'
        + _tunnel_on(segment)
    )


def network_off(segment: Segment) -> str:
    """Script: forget a network."""
    zone = f'{{ "{segment.bridge}" : {segment.network.zone} }}'
    chain = f"bridge duranova {segment.tunnel}"
    return (
        _drop_element("bridge duranova links", f'"{segment.gateway_link}"')
        + _drop_element("bridge duranova links", f'"{segment.tunnel}"')
        + _drop_element("ip duranova bridges", f'"{segment.bridge}"')
        + _drop_element("ip duranova uplinks", f'"{segment.uplink}"')
        + _drop_element("ip duranova transits", segment.inner)
        + f"add element ip duranova zones {zone}\n"
        + f'delete element ip duranova zones {{ "{segment.bridge}" }}\n'
        + f"add chain {chain}\n"
        + _drop_jump("bridge duranova tunnels", f'"{segment.tunnel}"', segment.tunnel)
        + f"flush chain {chain}\ndelete chain {chain}\n"
    )


def port_on(port: Port, servers: Iterable[str]) -> str:
    """Script: let a port's traffic be what its record says, replacing what was said before.

    ``servers`` are the addresses the network's DHCP server answers from.
    """
    script = (
        f'add element bridge duranova links {{ "{port.tap}" }}\n'
        f'add element bridge duranova marks {{ "{port.tap}" : {port.mark:#x} }}\n'
    )
    if not port.nic.port_security:
        return script + _unguard(port)
    jumps = (
        f'add element bridge duranova guards {{ "{port.tap}" : jump from_{port.tap} }}\n'
        f'add element bridge duranova shields {{ "{port.tap}" : jump to_{port.tap} }}\n'
        f"add element ip duranova egress {{ {port.mark:#x} : jump from_{port.tap} }}\n"
        f"add element ip duranova ingress {{ {port.mark:#x} : jump to_{port.tap} }}\n"
    )
    return (
        script
        + _chain("bridge", f"from_{port.tap}", _genuine(port.nic))
        + _chain(
            "bridge", f"to_{port.tap}", ["ether type ip accept", "ether type arp accept", "drop"]
        )
        + _chain("ip", f"from_{port.tap}", _egress(port))
        + _chain("ip", f"to_{port.tap}", _ingress(port, servers))
        + jumps
    )


def port_off(port: Port) -> str:
    """Script: forget a port."""
    mark = f'{{ "{port.tap}" : {port.mark:#x} }}'
    return (
        _unguard(port)
        + f"add element bridge duranova marks {mark}\n"
        + f'delete element bridge duranova marks {{ "{port.tap}" }}\n'
        + _drop_element("bridge duranova links", f'"{port.tap}"')
    )


def present() -> set[str]:
    """The names of the taps for which the filter has rules."""
    chains = kernel.nft_chains("bridge", "duranova") | kernel.nft_chains("ip", "duranova")
    return {name.partition("_")[2] for name in chains if name.startswith(("from_", "to_"))}


def check(nic: NicSpec) -> None:
    """Raise GuestRefused for a card that cannot be expressed as rules."""
    try:
        IPv4Network(nic.ip)
        subnet = IPv4Network(nic.subnet.cidr)
        if nic.subnet.gateway_ip:
            IPv4Network(nic.subnet.gateway_ip)
        _prefixes(nic.allowed_pairs)
        for rule in nic.rules:
            _match(rule)
    except ValueError as error:
        raise GuestRefused(f"Port {nic.port_id} cannot be wired: {error}") from error
    if not _MAC.fullmatch(nic.mac.lower()):
        raise GuestRefused(f"Port {nic.port_id} has no usable MAC address: {nic.mac!r}")
    if nic.ip == nic.subnet.gateway_ip or not IPv4Network(nic.ip).subnet_of(subnet):
        raise GuestRefused(f"Port {nic.port_id} cannot have the address {nic.ip} on {subnet}")


def _tunnel_on(segment: Segment) -> str:
    """What must not cross to other hosts: each has its own gateway, DHCP server and metadata."""
    gateways = ", ".join([METADATA_IP, *(s.gateway_ip for s in segment.subnets if s.gateway_ip)])
    rules = [
        f"ether saddr {segment.gateway_mac} drop",
        f"ether daddr {segment.gateway_mac} drop",
        f"arp daddr ip {{ {gateways} }} drop",
        f"arp saddr ip {{ {gateways} }} drop",
        "udp dport { 67, 68 } drop",
    ]
    return (
        _chain("bridge", segment.tunnel, rules)
        + f'add element bridge duranova tunnels {{ "{segment.tunnel}" : jump {segment.tunnel} }}\n'
    )


def _genuine(nic: NicSpec) -> list[str]:
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


def _egress(port: Port) -> list[str]:
    admit = _admit(port, "egress")
    return [
        *_continuing(port, "original", "reply"),
        f"udp sport 68 udp dport 67 {admit}",
        f"ip daddr {METADATA_IP} tcp dport 80 {admit}",
        *_allowed(port, "egress"),
        "drop",
    ]


def _ingress(port: Port, servers: Iterable[str]) -> list[str]:
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


def _chain(family: str, name: str, rules: Iterable[str]) -> str:
    """A chain with exactly these rules, whether it exists or not."""
    chain = f"{family} duranova {name}"
    lines = [f"add chain {chain}", f"flush chain {chain}"]
    return "\n".join([*lines, *(f"add rule {chain} {rule}" for rule in rules)]) + "\n"


def _unguard(port: Port) -> str:
    chains = [
        f"{family} duranova {way}_{port.tap}"
        for family in ("bridge", "ip")
        for way in ("from", "to")
    ]
    return (
        "".join(f"add chain {chain}\n" for chain in chains)
        + _drop_jump("bridge duranova guards", f'"{port.tap}"', f"from_{port.tap}")
        + _drop_jump("bridge duranova shields", f'"{port.tap}"', f"to_{port.tap}")
        + _drop_jump("ip duranova egress", f"{port.mark:#x}", f"from_{port.tap}")
        + _drop_jump("ip duranova ingress", f"{port.mark:#x}", f"to_{port.tap}")
        + "".join(f"flush chain {chain}\ndelete chain {chain}\n" for chain in chains)
    )


def _drop_jump(where: str, key: str, chain: str) -> str:
    # nft has no "delete if there": adding first makes the deletion safe to repeat.
    return f"add element {where} {{ {key} : jump {chain} }}\ndelete element {where} {{ {key} }}\n"


def _drop_element(where: str, key: str) -> str:
    return f"add element {where} {{ {key} }}\ndelete element {where} {{ {key} }}\n"
