"""Networking on a host: everything between a guest's network card and the world.

``HostNetwork`` is all the driver sees. A plugged port is a record in ``state_dir``; taps, bridges,
namespaces, filter rules, DHCP entries and routes are made to match the records, however often one asks
and whatever was lost in between.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from domain.errors import GuestFailure
from domain.guest import NicSpec
from virt.net import dhcp, kernel, rules, taps, tunnel
from virt.net.firewall import Firewall
from virt.net.metadata import Answer, Listener
from virt.net.records import Network, Port, Records
from virt.net.segment import Segment, choose_transit, ensure_host_routes

_log = logging.getLogger(__name__)

RUNTIME_DIR = Path("/run/duranova")
DOMAIN = "novalocal"
"""Follows the host names of guests, as Nova's default has it."""


class HostNetwork:
    """The networks of one host, which is the network namespace the process runs in.

    All methods may be repeated and may be called from several threads. They raise GuestFailure when the
    kernel or dnsmasq could not do it now, GuestRefused for a card that never can be wired.
    """

    def __init__(
        self,
        state_dir: Path,
        host: str,
        metadata: Answer,
        nat: bool = True,
        host_routes: bool = True,
    ) -> None:
        """``nat``: guests reach the world from the host's addresses. ``host_routes``: the host reaches
        its guests by their addresses, as far as those are unique."""
        self._records = Records(state_dir)
        self._host = host
        self._metadata = metadata
        self._nat = nat
        self._host_routes = host_routes
        self._firewall = Firewall("", nat)
        self._peers: tuple[str, ...] = ()
        self._listeners: dict[str, Listener] = {}
        # One change at a time: each is a few dozen milliseconds, and networks share bridges and tables.
        self._lock = threading.RLock()

    # --- life -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Prepare the host, and restore all that is recorded: after a restart nothing is missing."""
        with self._lock:
            self._records.load()
            self._firewall = Firewall(f"duranova_{self._records.instance}", self._nat)
            _prepare_kernel()
            self._drop_unused_networks()
            self._load_filter()
            for network_id in list(self._records.networks):
                self._restore(network_id)
            self._ensure_routes()

    def close(self) -> None:
        """Stop answering metadata requests; networks and DHCP go on."""
        with self._lock:
            while self._listeners:
                self._listeners.popitem()[1].close()

    def remove(self) -> None:
        """Take everything away, the packet filter too: for a host that is no more. No ``open`` needed."""
        with self._lock:
            self.open()
            self._unplug(list(self._records.ports.values()))
            self._ensure_routes()
            self._firewall.remove()
            self.close()

    # --- ports ----------------------------------------------------------------------------------

    def plug(self, server_id: str, nics: Sequence[NicSpec]) -> None:
        """Wire exactly these cards for a server; its taps are up and filtered on return."""
        for nic in nics:
            rules.check(nic)
        with self._lock:
            wanted = {nic.port_id for nic in nics}
            self._unplug(
                p for p in self._records.of_server(server_id) if p.nic.port_id not in wanted
            )
            for nic in nics:
                known = self._records.ports.get(nic.port_id)
                if known is not None and _moved(known, server_id, nic):
                    self._unplug([known])
            self._record(server_id, nics)
            for network_id in dict.fromkeys(nic.network_id for nic in nics):
                self._ensure_network(network_id)
            self._load_ports(wanted)
            for nic in nics:
                taps.ensure(self._records.ports[nic.port_id], self._segment(nic.network_id))
            self._ensure_routes()

    def unplug(self, server_id: str) -> None:
        """Remove all cards of a server, and networks that lose their last port."""
        with self._lock:
            self._unplug(self._records.of_server(server_id))
            self._ensure_routes()

    def apply(self, server_id: str, nics: Sequence[NicSpec]) -> None:
        """Make rules and DHCP entries of a server's cards say this; cards it does not have are left out.

        Connections that exist go on; what the rules no longer allow cannot begin.
        """
        for nic in nics:
            rules.check(nic)
        with self._lock:
            mine = {p.nic.port_id: p for p in self._records.of_server(server_id)}
            known = [nic for nic in nics if nic.port_id in mine]
            known = [nic for nic in known if not _moved(mine[nic.port_id], server_id, nic)]
            changed = [nic for nic in known if mine[nic.port_id].nic != nic]
            self._record(server_id, changed)
            self._load_ports({nic.port_id for nic in changed})
            rewired = [n for n in changed if _needs_wiring(mine[n.port_id].nic, n)]
            for network_id in dict.fromkeys(nic.network_id for nic in rewired):
                self._ensure_network(network_id)
            for nic in rewired:
                taps.ensure(self._records.ports[nic.port_id], self._segment(nic.network_id))
            if rewired:
                self._ensure_routes()

    # --- truth ----------------------------------------------------------------------------------

    def residue(self, server_id: str | None = None) -> list[str]:
        """``tap:…``, ``rules:…`` (by tap name) and ``dhcp:…`` (by port id) of a server, or of all."""
        with self._lock:
            ports = [p for p in self._records.ports.values() if server_id in {None, p.server_id}]
            named = {p.tap for p in ports}
            found_taps = {
                tap
                for tap, owner in taps.present(self._identity).items()
                if server_id in {None, owner} or tap in named
            }
            rules = self._firewall.present()
            if server_id is not None:
                rules &= named | found_taps
            entries = dhcp.entries_below(self._run_dir)
            leases = {p for p, owner in entries.items() if server_id in {None, owner}}
            found = {"dhcp": leases, "rules": rules, "tap": found_taps}
            return sorted(f"{kind}:{name}" for kind, names in found.items() for name in names)

    def owners(self) -> set[str]:
        """Ids of the servers that have any of this; rules of taps that are nobody's as ``rules:…``."""
        with self._lock:
            owned = {p.tap: p.server_id for p in self._records.ports.values()}
            owned |= taps.present(self._identity)
            rules = {f"rules:{tap}" for tap in self._firewall.present() - owned.keys()}
            return {*owned.values(), *dhcp.entries_below(self._run_dir).values(), *rules}

    def networks(self) -> list[str]:
        """The ids of the networks that have devices here."""
        with self._lock:
            return sorted(self._records.networks)

    def set_peers(self, peers: Sequence[str]) -> None:
        """The underlay addresses of the other hosts that share our networks; empty for none."""
        with self._lock:
            self._peers = tuple(sorted(set(peers)))
            self._load_filter()
            for network_id in self._records.networks:
                tunnel.ensure(self._segment(network_id), self._peers)

    # --- inside ---------------------------------------------------------------------------------

    @property
    def _run_dir(self) -> Path:
        return RUNTIME_DIR / self._records.instance

    @property
    def _identity(self) -> str:
        """Several hosts may share a machine, even a namespace: this tells their things apart."""
        named = f"{self._host}/{self._records.instance}"
        return hashlib.sha256(named.encode()).hexdigest()[:12]

    def _segment(self, network_id: str) -> Segment:
        ports = self._records.of_network(network_id)
        return Segment(self._identity, self._records.networks[network_id], ports)

    def _dhcp(self, segment: Segment) -> dhcp.Dhcp:
        return dhcp.Dhcp(segment, self._run_dir / segment.netns, DOMAIN)

    def _record(self, server_id: str, nics: Sequence[NicSpec]) -> None:
        """Record ports and their networks: from here on they belong to the host."""
        for nic in nics:
            known = self._records.ports.get(nic.port_id)
            if known is None:
                self._records.put_port(Port(server_id, nic, self._records.free_number()))
            elif known.nic != nic:
                self._records.put_port(Port(server_id, nic, known.number, since=known.since))
            _record_network(self._records, nic)

    def _restore(self, network_id: str) -> None:
        """Bring one network back; what keeps it away must not keep the others away, too."""
        try:
            self._ensure_network(network_id)
            for port in self._records.of_network(network_id):
                taps.ensure(port, self._segment(network_id))
        except GuestFailure:
            _log.exception("network %s is not restored; the next plug tries again", network_id)

    def _ensure_network(self, network_id: str) -> None:
        segment = self._segment(network_id)
        self._firewall.add_network(segment)
        segment.ensure()
        tunnel.ensure(segment, self._peers)
        self._dhcp(segment).ensure()
        listener = self._listeners.get(network_id)
        if listener is None or not listener.serves(segment.netns):
            if listener is not None:
                listener.close()
            self._listeners[network_id] = Listener(
                segment.netns, lambda ip: self._records.owner(network_id, ip), self._metadata
            )

    def _unplug(self, ports: Iterable[Port]) -> None:
        """Undo ``plug`` for some ports; their records go last, so that a crash leaves none behind."""
        for port in list(ports):
            taps.remove(port)
            self._firewall.remove_port(port)
            network_id = port.nic.network_id
            rest = [p for p in self._records.of_network(network_id) if p != port]
            if not rest:
                self._remove_network(network_id)
                self._records.drop_port(port.nic.port_id)
                self._records.drop_network(network_id)
                continue
            without = Segment(self._identity, self._records.networks[network_id], rest)
            without.ensure()
            self._dhcp(without).ensure()
            self._records.drop_port(port.nic.port_id)

    def _remove_network(self, network_id: str) -> None:
        listener = self._listeners.pop(network_id, None)
        if listener is not None:
            listener.close()
        if network_id not in self._records.networks:
            return
        segment = self._segment(network_id)
        self._dhcp(segment).remove()
        segment.remove()
        self._firewall.remove_network(segment)
        if not self._records.networks.keys() - {network_id}:
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def _drop_unused_networks(self) -> None:
        used = {p.nic.network_id for p in self._records.ports.values()}
        for network_id in set(self._records.networks) - used:
            self._remove_network(network_id)
            self._records.drop_network(network_id)
        for port in self._records.ports.values():
            _record_network(self._records, port.nic)

    def _load_filter(self) -> None:
        segments = [self._segment(network_id) for network_id in self._records.networks]
        self._firewall.load(segments, dhcp.upstream_servers(), self._peers)

    def _load_ports(self, port_ids: Iterable[str]) -> None:
        ports = [self._records.ports[port_id] for port_id in sorted(port_ids)]
        self._firewall.set_ports((p, self._segment(p.nic.network_id)) for p in ports)

    def _ensure_routes(self) -> None:
        if self._host_routes:
            ensure_host_routes([self._segment(n) for n in self._records.networks])


def _record_network(records: Records, nic: NicSpec) -> None:
    if nic.network_id in records.networks:
        return
    others = list(records.networks.values())
    cidrs = [p.nic.subnet.cidr for p in records.of_network(nic.network_id)]
    zone = _free_zone(nic.network_id, {n.zone for n in others})
    transit = choose_transit(cidrs, [n.transit for n in others])
    records.put_network(Network(nic.network_id, nic.segment, zone, transit))


def _moved(known: Port, server_id: str, nic: NicSpec) -> bool:
    """Is this port not the one it was, so that nothing of it can be kept?"""
    return (known.server_id, known.nic.network_id) != (server_id, nic.network_id)


def _needs_wiring(before: NicSpec, after: NicSpec) -> bool:
    """Does a change reach beyond the packet filter's rules for the port?"""
    return any(
        getattr(before, name) != getattr(after, name)
        for name in ("mac", "ip", "subnet", "mtu", "hostname", "port_security")
    )


def _free_zone(network_id: str, used: set[int]) -> int:
    """A conntrack zone: the same for a network each time if possible, so that zones rarely change hands."""
    first = int.from_bytes(hashlib.sha256(network_id.encode()).digest()[:4]) % 65535
    candidates = ((first + step) % 65535 + 1 for step in range(65535))
    return next(zone for zone in candidates if zone not in used)


def _prepare_kernel() -> None:
    """IPv4 forwarding for NAT, and bridged packets shown to the ip tables (per bridge, not for all)."""
    if not Path("/proc/sys/net/bridge").exists():
        kernel.run(["modprobe", "br_netfilter"])
        # Just loaded, so nobody relies on it: our bridges ask for it one by one.
        kernel.set_sysctls({"net/bridge/bridge-nf-call-iptables": "0"})
    kernel.set_sysctls({"net/ipv4/ip_forward": "1"})
