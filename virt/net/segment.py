"""One network on one host: a bridge for the taps, and a namespace with its gateway, joined by veth pairs.

``tap… — dnb… (bridge) — dng…|gw0 — [namespace: gateway, 169.254.169.254, NAT] — up0|dnu… — host``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from domain.errors import GuestFailure
from domain.guest import SubnetSpec
from domain.ids import bridge_name
from virt.net import kernel
from virt.net.records import Network, Port, subnets_of

METADATA_IP = "169.254.169.254"
TRANSIT_POOLS = ("100.127.224.0/19", "198.18.224.0/19", "169.254.224.0/19")
"""Where the /31 between a network's namespace and the host comes from: the first that is free."""
ROUTE_PROTOCOL = "214"
"""Marks the routes to guests as ours in the host's routing table."""

_INSIDE = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
}

_NAMESPACE_RULES = """
add table ip duranova
delete table ip duranova
table ip duranova {
  chain input {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established,related accept
    icmp type echo-request accept
    iifname "gw0" udp dport { 53, 67 } accept
    iifname "gw0" tcp dport 53 accept
    iifname "gw0" ip daddr 169.254.169.254 tcp dport 80 accept
  }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname "gw0" ip daddr 169.254.0.0/16 drop
    iifname "up0" oifname "gw0" meta mark set 1
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    oifname "up0" masquerade
    meta mark 1 oifname "gw0" masquerade
  }
}
"""


@dataclass(frozen=True, slots=True)
class Segment:
    """The devices of one network on one host; every method makes the kernel agree and may be repeated."""

    host: str
    network: Network
    ports: Sequence[Port]
    """The network's ports here, the latest described last."""

    @property
    def netns(self) -> str:
        """The namespace's name: namespaces are named machine-wide, so the host is part of it."""
        return f"dn-{_digest(f'{self.host}/{self.network.id}')[:12]}"

    @property
    def bridge(self) -> str:
        """The bridge of the taps."""
        return bridge_name(self.network.id)

    @property
    def gateway_link(self) -> str:
        """The bridge's port towards the namespace."""
        return f"dng{self.bridge[3:]}"

    @property
    def uplink(self) -> str:
        """The host's device towards the namespace."""
        return f"dnu{self.bridge[3:]}"

    @property
    def tunnel(self) -> str:
        """The bridge's port towards other hosts."""
        return f"dnx{self.bridge[3:]}"

    @property
    def gateway_mac(self) -> str:
        """The same on every host, so that a guest that moves finds its gateway where it was."""
        return _mac(0x0E, self.network.id)

    @property
    def mtu(self) -> int:
        """The network's MTU, as its latest described port has it."""
        return self.ports[-1].nic.mtu

    @property
    def subnets(self) -> list[SubnetSpec]:
        """The subnets that have a port here."""
        return subnets_of(self.ports)

    @property
    def gateways(self) -> list[str]:
        """The gateway addresses of the subnets."""
        return [s.gateway_ip for s in self.subnets if s.gateway_ip]

    @property
    def inner(self) -> str:
        """The namespace's address on the transit link."""
        return str(IPv4Address(self.network.transit) + 1)

    def ensure(self) -> None:
        """Make bridge, namespace, links, addresses, routes and NAT of the network be as recorded."""
        if self.netns not in kernel.namespaces():
            kernel.run(["ip", "netns", "add", self.netns])
        self._ensure_links()
        kernel.inside(self.netns, lambda: kernel.set_sysctls(_INSIDE))
        kernel.nft(_NAMESPACE_RULES, self.netns)
        self._ensure_addresses()

    def remove(self) -> None:
        """Remove all devices of the network and its namespace."""
        existing = kernel.links()
        # By name and before the namespace: the kernel tears a namespace down in the background.
        mine = (self.uplink, self.gateway_link, self.tunnel, self.bridge)
        kernel.ip([f"link delete {name}" for name in mine if name in existing])
        if self.netns in kernel.namespaces():
            kernel.run(["ip", "netns", "delete", self.netns])

    def _ensure_links(self) -> None:
        outside, inside = kernel.links(), kernel.links(self.netns)
        lines = []
        if self.bridge not in outside:
            lines.append(
                f"link add {self.bridge} address {_mac(0x0A, self.network.id)} type bridge"
                " stp_state 0 mcast_snooping 0 nf_call_iptables 1"
            )
        for outer, inner in ((self.gateway_link, "gw0"), (self.uplink, "up0")):
            if outer in outside and inner not in inside:
                lines.append(f"link delete {outer}")  # its peer went with an earlier namespace
            if outer not in outside or inner not in inside:
                lines.append(f"link add {outer} type veth peer name {inner} netns {self.netns}")
        kernel.ip(lines)
        kernel.ip(
            [
                f"link set {self.bridge} type bridge nf_call_iptables 1 mcast_snooping 0",
                f"link set {self.bridge} mtu {self.mtu} addrgenmode none up",
                f"link set {self.gateway_link} master {self.bridge} mtu {self.mtu} addrgenmode none up",
                f"link set {self.uplink} addrgenmode none up",
                f"address replace {self.network.transit}/31 dev {self.uplink}",
            ]
        )
        # Nobody else on the bridge can attract the gateway's frames.
        kernel.bridge([f"fdb replace {self.gateway_mac} dev {self.gateway_link} master static"])

    def _ensure_addresses(self) -> None:
        wanted = {f"{METADATA_IP}/32"} | {
            f"{s.gateway_ip}/{IPv4Network(s.cidr).prefixlen}" for s in self.subnets if s.gateway_ip
        }
        present = {
            f"{a['local']}/{a['prefixlen']}"
            for row in kernel.show("-4", "address", "show", "dev", "gw0", netns=self.netns)
            for a in row["addr_info"]
        }
        lines = [f"address delete {stale} dev gw0" for stale in sorted(present - wanted)]
        lines += [
            "link set lo up",
            f"link set gw0 address {self.gateway_mac} mtu {self.mtu} addrgenmode none up",
            "link set up0 addrgenmode none up",
            f"address replace {self.inner}/31 dev up0",
            *(f"address replace {new} dev gw0" for new in sorted(wanted - present)),
            # A subnet without a gateway is still on this link, for DHCP and metadata.
            *(f"route replace {s.cidr} dev gw0" for s in self.subnets if not s.gateway_ip),
            f"route replace default via {self.network.transit} dev up0",
        ]
        kernel.ip(lines, self.netns)
        self._ensure_neighbours()

    def _ensure_neighbours(self) -> None:
        """Pin the addresses of secured ports to their cards: no other guest can answer for them."""
        wanted = {p.nic.ip: p.nic.mac.lower() for p in self.ports if p.nic.port_security}
        present = {
            row["dst"]: row.get("lladdr", "")
            for row in kernel.show(
                "neighbour", "show", "dev", "gw0", "nud", "permanent", netns=self.netns
            )
        }
        kernel.ip(
            [
                *(f"neighbour delete {dst} dev gw0" for dst in present if dst not in wanted),
                *(
                    f"neighbour replace {dst} lladdr {mac} dev gw0 nud permanent"
                    for dst, mac in wanted.items()
                    if present.get(dst) != mac
                ),
            ],
            self.netns,
        )


def choose_transit(segment_subnets: Iterable[str], taken: Iterable[str]) -> str:
    """The first address of a /31 that collides with no route of the host, no subnet and no other transit.

    Raises GuestFailure when every pool is used up.
    """
    avoid = [IPv4Network(cidr) for cidr in segment_subnets]
    avoid += [IPv4Network(f"{first}/31") for first in taken]
    avoid += [net for net, _protocol, _device in host_prefixes()]
    for pool in TRANSIT_POOLS:
        for candidate in IPv4Network(pool).subnets(new_prefix=31):
            if not any(candidate.overlaps(net) for net in avoid):
                return str(candidate[0])
    raise GuestFailure("No transit addresses are left on this host")


def host_prefixes() -> list[tuple[IPv4Network, str, str]]:
    """(prefix, routing protocol, device) of what the host can reach other than by its default route."""
    rows = kernel.show("-4", "route", "show", "table", "main")
    rows += kernel.show("-4", "route", "show", "table", "local")
    found = []
    for row in rows:
        if row["dst"] == "default":
            continue
        prefix = IPv4Network(row["dst"], strict=False)
        if prefix.prefixlen > 1:  # halves of everything are a default route, too
            found.append((prefix, str(row.get("protocol", "")), str(row.get("dev", ""))))
    return found


def ensure_host_routes(segments: Sequence[Segment]) -> None:
    """Route from the host to each guest whose address means one machine only, and drop other such routes."""
    mine = {segment.uplink for segment in segments}
    foreign = [
        net for net, protocol, device in host_prefixes() if not _guest_route(protocol, device, mine)
    ]
    wanted: dict[str, str] = {}
    pairs = [(segment, port) for segment in segments for port in segment.ports]
    for segment, port in sorted(pairs, key=lambda pair: pair[1].since):
        address = IPv4Address(port.nic.ip)
        if not any(address in net for net in foreign):
            via = f"via {segment.inner} dev {segment.uplink} src {segment.network.transit}"
            wanted.setdefault(port.nic.ip, via)
    present = {
        row["dst"]: f"via {row.get('gateway')} dev {row['dev']} src {row.get('prefsrc')}"
        for row in kernel.show("-4", "route", "show", "table", "main", "proto", ROUTE_PROTOCOL)
        if row["dev"] in mine
    }
    kernel.ip(
        [
            *(
                f"route delete {dst}/32 proto {ROUTE_PROTOCOL}"
                for dst in present
                if dst not in wanted
            ),
            *(
                f"route replace {dst}/32 {how} proto {ROUTE_PROTOCOL}"
                for dst, how in wanted.items()
                if present.get(dst) != how
            ),
        ]
    )


def _guest_route(protocol: str, device: str, uplinks: set[str]) -> bool:
    return protocol == ROUTE_PROTOCOL and device in uplinks


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _mac(first: int, network_id: str) -> str:
    """A locally administered MAC that belongs to a network."""
    raw = bytes([first]) + hashlib.sha256(network_id.encode()).digest()[:5]
    return raw.hex(":")
