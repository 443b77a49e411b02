"""The host's packet filter: who a guest may pretend to be, and what its security groups let through.

Two nftables tables of one name. The ``bridge`` one is stateless: it drops forged frames and marks
packets with the port they come from, then with the port they go to. The ``ip`` one sees the same packets
by way of br_netfilter, where connection tracking works: in *prerouting* the mark means the sender, whose
egress rules apply; in *forward* it means the receiver, whose ingress rules apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from virt.net import kernel, rules
from virt.net.records import Port
from virt.net.segment import METADATA_IP, Segment

_BRIDGE_TABLE = """
add table bridge %(table)s
delete table bridge %(table)s
table bridge %(table)s {
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
add table ip %(table)s
delete table ip %(table)s
table ip %(table)s {
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


_FAMILIES = ("bridge", "ip")


class Firewall:
    """The tables of one host, named after its instance. Every change is one transaction, and repeatable."""

    def __init__(self, table: str, nat: bool) -> None:
        self.table = table
        self._nat = nat

    def load(
        self, segments: Sequence[Segment], resolvers: Sequence[str], peers: Sequence[str]
    ) -> None:
        """Load everything anew: nothing old remains, and there is no moment without.

        ``resolvers`` are name servers guests may ask even if they are the host itself, ``peers`` the
        hosts whose tunnels end here.
        """
        script = self._tables(resolvers, peers)
        script += "".join(self._network_on(segment) for segment in segments)
        script += "".join(self._port_on(port, s) for s in segments for port in s.ports)
        kernel.nft(script)

    def remove(self) -> None:
        """Take both tables away."""
        kernel.nft(
            "".join(
                f"add table {f} {self.table}\ndelete table {f} {self.table}\n" for f in _FAMILIES
            )
        )

    def add_network(self, segment: Segment) -> None:
        """Know a network's devices, its conntrack zone and its transit address."""
        kernel.nft(self._network_on(segment))

    def remove_network(self, segment: Segment) -> None:
        """Forget a network."""
        zone = f'"{segment.bridge}" : {segment.network.zone}'
        chain = f"bridge {self.table} {segment.tunnel}"
        kernel.nft(
            self._drop("bridge", "links", f'"{segment.gateway_link}"')
            + self._drop("bridge", "links", f'"{segment.tunnel}"')
            + self._drop("ip", "bridges", f'"{segment.bridge}"')
            + self._drop("ip", "uplinks", f'"{segment.uplink}"')
            + self._drop("ip", "transits", segment.inner)
            + self._drop("ip", "zones", zone, f'"{segment.bridge}"')
            + f"add chain {chain}\n"
            + self._drop_jump("bridge", "tunnels", f'"{segment.tunnel}"', segment.tunnel)
            + f"flush chain {chain}\ndelete chain {chain}\n"
        )

    def set_ports(self, ports: Iterable[tuple[Port, Segment]]) -> None:
        """Let the traffic of ports be what their records say, replacing what was said before."""
        kernel.nft("".join(self._port_on(port, segment) for port, segment in ports))

    def remove_port(self, port: Port) -> None:
        """Forget a port."""
        mark = f'"{port.tap}" : {port.mark:#x}'
        kernel.nft(
            self._unguard(port)
            + self._drop("bridge", "marks", mark, f'"{port.tap}"')
            + self._drop("bridge", "links", f'"{port.tap}"')
        )

    def present(self) -> set[str]:
        """The names of the taps for which there are rules."""
        chains = kernel.nft_chains("bridge", self.table) | kernel.nft_chains("ip", self.table)
        return {name.partition("_")[2] for name in chains if name.startswith(("from_", "to_"))}

    def _tables(self, resolvers: Sequence[str], peers: Sequence[str]) -> str:
        ask = (
            f"ip daddr {{ {', '.join(resolvers)} }} meta l4proto {{ tcp, udp }} th dport 53 accept"
        )
        parts = {
            "table": self.table,
            "resolvers": f"    iifname @uplinks {ask}" if resolvers else "",
            "tunnels": "    udp dport 4789 ip saddr != @peers drop" if peers else "",
            "nat": "    ip saddr @transits oifname != @uplinks masquerade" if self._nat else "",
        }
        known = "".join(self._add("ip", "peers", peer) for peer in peers)
        return _BRIDGE_TABLE % parts + _IP_TABLE % parts + known

    def _network_on(self, segment: Segment) -> str:
        jump = f'"{segment.tunnel}" : jump {segment.tunnel}'
        return (
            self._add("bridge", "links", f'"{segment.gateway_link}", "{segment.tunnel}"')
            + self._add("ip", "bridges", f'"{segment.bridge}"')
            + self._add("ip", "uplinks", f'"{segment.uplink}"')
            + self._add("ip", "transits", segment.inner)
            + self._add("ip", "zones", f'"{segment.bridge}" : {segment.network.zone}')
            + self._chain("bridge", segment.tunnel, _local_only(segment))
            + self._add("bridge", "tunnels", jump)
        )

    def _port_on(self, port: Port, segment: Segment) -> str:
        tap, mark = port.tap, f"{port.mark:#x}"
        known = self._add("bridge", "links", f'"{tap}"')
        known += self._add("bridge", "marks", f'"{tap}" : {mark}')
        if not port.nic.port_security:
            return known + self._unguard(port)
        plain = ["ether type ip accept", "ether type arp accept", "drop"]
        return (
            known
            + self._chain("bridge", f"from_{tap}", rules.genuine(port.nic))
            + self._chain("bridge", f"to_{tap}", plain)
            + self._chain("ip", f"from_{tap}", rules.egress(port))
            + self._chain("ip", f"to_{tap}", rules.ingress(port, [METADATA_IP, *segment.gateways]))
            + self._add("bridge", "guards", f'"{tap}" : jump from_{tap}')
            + self._add("bridge", "shields", f'"{tap}" : jump to_{tap}')
            + self._add("ip", "egress", f"{mark} : jump from_{tap}")
            + self._add("ip", "ingress", f"{mark} : jump to_{tap}")
        )

    def _unguard(self, port: Port) -> str:
        tap, mark = port.tap, f"{port.mark:#x}"
        chains = [
            f"{family} {self.table} {way}_{tap}"
            for family in ("bridge", "ip")
            for way in ("from", "to")
        ]
        return (
            "".join(f"add chain {chain}\n" for chain in chains)
            + self._drop_jump("bridge", "guards", f'"{tap}"', f"from_{tap}")
            + self._drop_jump("bridge", "shields", f'"{tap}"', f"to_{tap}")
            + self._drop_jump("ip", "egress", mark, f"from_{tap}")
            + self._drop_jump("ip", "ingress", mark, f"to_{tap}")
            + "".join(f"flush chain {chain}\ndelete chain {chain}\n" for chain in chains)
        )

    def _chain(self, family: str, name: str, content: Iterable[str]) -> str:
        """A chain with exactly these rules, whether it exists or not."""
        chain = f"{family} {self.table} {name}"
        lines = [f"add chain {chain}", f"flush chain {chain}"]
        return "\n".join([*lines, *(f"add rule {chain} {rule}" for rule in content)]) + "\n"

    def _add(self, family: str, where: str, element: str) -> str:
        return f"add element {family} {self.table} {where} {{ {element} }}\n"

    def _drop(self, family: str, where: str, element: str, key: str | None = None) -> str:
        # nft has no "delete if there": adding first makes the deletion safe to repeat.
        deletion = f"delete element {family} {self.table} {where} {{ {key or element} }}\n"
        return self._add(family, where, element) + deletion

    def _drop_jump(self, family: str, where: str, key: str, chain: str) -> str:
        return self._drop(family, where, f"{key} : jump {chain}", key)


def _local_only(segment: Segment) -> list[str]:
    """Rules for what must not cross to other hosts: each has its own gateway, DHCP and metadata."""
    gateways = ", ".join([METADATA_IP, *segment.gateways])
    return [
        f"ether saddr {segment.gateway_mac} drop",
        f"ether daddr {segment.gateway_mac} drop",
        f"arp daddr ip {{ {gateways} }} drop",
        f"arp saddr ip {{ {gateways} }} drop",
        "udp dport { 67, 68 } drop",
    ]
