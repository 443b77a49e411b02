"""A host in a network namespace of its own, an outside world next to it, and guests without QEMU.

A guest is a namespace whose card is the far end of a veth pair; the near end carries the tap's name,
so everything from the tap on is the real thing.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import netns as pyroute2_netns

from domain.guest import NicSpec, SecurityRule, SubnetSpec
from domain.ids import tap_name
from virt.net import kernel
from virt.nics import HostNetwork

OUTSIDE_IP = "198.51.100.2"
HOST_IP = "198.51.100.1"

_UDHCPC_SCRIPT = """#!/bin/sh
case "$1" in
  deconfig) ip address flush dev $interface ;;
  bound|renew)
    env > {log}
    ip address replace $ip/$mask dev $interface
    set -- $staticroutes
    while [ $# -ge 2 ]; do
      if [ "$2" = 0.0.0.0 ]; then ip route replace $1 dev $interface
      else ip route replace $1 via $2 dev $interface onlink; fi
      shift 2
    done ;;
esac
"""

EGRESS = SecurityRule("egress")
PING = SecurityRule("ingress", "icmp")


def run(
    *argv: str, netns: str | None = None, timeout: float = 20
) -> subprocess.CompletedProcess[str]:
    prefix = ["nsenter", f"--net=/run/netns/{netns}", "--"] if netns else []
    return subprocess.run(
        [*prefix, *argv], capture_output=True, text=True, timeout=timeout, check=False
    )


@dataclass
class Guest:
    """A guest on a veth instead of a tap."""

    netns: str
    server_id: str
    nic: NicSpec
    scratch: Path
    background: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return run(*argv, netns=self.netns)

    def dhcp(self) -> dict[str, str]:
        """Ask for an address; what the server said, empty if nobody answered."""
        log = self.scratch / f"{self.netns}.env"
        log.unlink(missing_ok=True)
        script = self.scratch / f"{self.netns}.sh"
        script.write_text(_UDHCPC_SCRIPT.format(log=log))
        script.chmod(0o755)
        asked = ["-O", "staticroutes", "-O", "hostname", "-O", "mtu", "-O", "dns", "-O", "domain"]
        options = ["-i", "eth0", "-n", "-q", "-f", "-t", "4", "-T", "1", "-A", "1"]
        self.run("busybox", "udhcpc", *options, *asked, "-s", str(script))
        lines = log.read_text().splitlines() if log.exists() else []
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def configure(self) -> None:
        """Set the address by hand."""
        prefix = self.nic.subnet.cidr.split("/")[1]
        self.run("ip", "address", "replace", f"{self.nic.ip}/{prefix}", "dev", "eth0")
        if self.nic.subnet.gateway_ip:
            self.run("ip", "route", "replace", "default", "via", self.nic.subnet.gateway_ip)

    def pings(self, address: str, *options: str) -> bool:
        return self.run("ping", "-n", "-c1", "-W1", *options, address).returncode == 0

    def fetch(self, url: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("curl", "-sS", "--noproxy", "*", "--max-time", "2", *options, url)

    def serve(self, port: int) -> None:
        serve(self.background, self.scratch, self.netns, port)


def serve(owned: list[subprocess.Popen[bytes]], scratch: Path, netns: str, port: int) -> None:
    """An HTTP server with one page, ``hello``, ready on return."""
    (scratch / "hello").write_text(f"from {netns}")
    enter = ["nsenter", f"--net=/run/netns/{netns}", "--"]
    owned.append(
        subprocess.Popen([*enter, "busybox", "httpd", "-f", "-p", str(port), "-h", str(scratch)])
    )
    own = f"http://127.0.0.1:{port}/hello"
    run("ip", "link", "set", "lo", "up", netns=netns)
    retry = ["--retry", "20", "--retry-connrefused", "--retry-delay", "0", "--retry-max-time", "10"]
    assert run("curl", "-sS", "--noproxy", "*", *retry, own, netns=netns).returncode == 0


@dataclass
class Lab:
    """The machine room of one test."""

    host: str
    outside: str
    scratch: Path
    guests: list[Guest] = field(default_factory=list)
    made: list[tuple[str, HostNetwork]] = field(default_factory=list)
    background: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: list[tuple[str, str, str, Mapping[str, str]]] = field(default_factory=list)
    """What the metadata service was asked."""

    def network(self, state: str = "state", **options: Any) -> HostNetwork:
        """A fresh HostNetwork over the same records, as after a restart of the worker."""
        made = HostNetwork(self.scratch / state, self.host, self.answer, **options)
        self.made.append((state, made))
        made.open()
        return made

    def answer(
        self, server_id: str, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        self.asked.append((server_id, method, path, headers))
        return 200, {"Content-Type": "text/plain"}, server_id.encode()

    def guest(self, nic: NicSpec, server_id: str | None = None) -> Guest:
        """A guest whose card is connected to the tap of this port; not plugged yet."""
        name = f"dnt-{uuid.uuid4().hex[:8]}"
        guest = Guest(name, server_id or str(uuid.uuid4()), nic, self.scratch)
        self.guests.append(guest)
        kernel.run(["ip", "netns", "add", name])
        peer = f"type veth peer name eth0 address {nic.mac} netns {name}"
        kernel.ip([f"link add {tap_name(nic.port_id)} {peer}"])
        kernel.ip(["link set lo up", "link set eth0 up"], name)
        return guest

    def plugged(self, network: HostNetwork, nic: NicSpec) -> Guest:
        """A guest that is plugged and has its address."""
        guest = self.guest(nic)
        network.plug(guest.server_id, [nic])
        guest.configure()
        return guest

    def state(self) -> dict[str, Any]:
        """All that networking leaves on the host, for comparisons; without what the kernel makes up."""
        listed = json.loads(run("nft", "-json", "--stateless", "list", "ruleset").stdout)
        return {
            "links": {
                name: (link.get("master"), link["mtu"], "UP" in link["flags"])
                for name, link in kernel.links().items()
            },
            "rules": sorted(_canonical(row) for row in listed["nftables"]),
            "routes": sorted(run("ip", "-4", "route", "show", "table", "all").stdout.splitlines()),
            "namespaces": {n for n in kernel.namespaces() if n.startswith("dn-")} - self.foreign,
            "files": sorted(str(p) for p in (self.scratch / "state").rglob("*") if p.is_file()),
        }

    foreign: frozenset[str] = frozenset()

    def close(self) -> None:
        for _state, network in self.made:
            network.close()
        for network in dict(self.made).values():
            network.open()
            for server_id in {p.server_id for p in network._records.ports.values()}:
                network.unplug(server_id)
            network.close()
        for process in self.background + [p for g in self.guests for p in g.background]:
            process.kill()
            process.wait()
        for guest in self.guests:
            run("ip", "netns", "delete", guest.netns)


def _canonical(row: dict[str, Any]) -> str:
    """One object of a ruleset, without handles and with its elements in order."""
    for value in row.values():
        value.pop("handle", None)
        if "elem" in value:
            value["elem"] = sorted(json.dumps(element) for element in value["elem"])
    return json.dumps(row, sort_keys=True)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A fresh host: its own namespace with a way to an outside world that knows no guest's address."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    tmp_path.chmod(0o755)
    suffix = uuid.uuid4().hex[:8]
    host, outside = f"dnt-host-{suffix}", f"dnt-out-{suffix}"
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    before = frozenset(kernel.namespaces())
    lab = Lab(host, outside, tmp_path, foreign=before)
    try:
        for name in (host, outside):
            kernel.run(["ip", "netns", "add", name])
        pyroute2_netns.setns(f"/run/netns/{host}", flags=0)
        kernel.ip(
            [
                "link set lo up",
                f"link add eth0 type veth peer name eth0 netns {outside}",
                f"address add {HOST_IP}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {OUTSIDE_IP}",
            ]
        )
        kernel.ip(
            ["link set lo up", f"address add {OUTSIDE_IP}/24 dev eth0", "link set eth0 up"], outside
        )
        # As on a host whose administrator keeps bridged packets away from iptables.
        kernel.set_sysctls({"net/bridge/bridge-nf-call-iptables": "0"})
        yield lab
    finally:
        try:
            lab.close()
        finally:
            pyroute2_netns.setns(home)
            os.close(home)
            for name in (host, outside):
                run("ip", "netns", "delete", name)


@pytest.fixture
def network(lab: Lab) -> HostNetwork:
    """The host's networking, opened."""
    return lab.network()


@pytest.fixture
def make_nic() -> Callable[..., NicSpec]:
    """Cards of a test: ``make_nic(10, network_id=…, rules=…)`` is 10.7.0.10 on 10.7.0.0/24."""
    default_network = str(uuid.uuid4())
    subnet_ids: dict[str, str] = {}

    def make(last: int, network_id: str = default_network, **fields: Any) -> NicSpec:
        subnet_id = subnet_ids.setdefault(network_id, str(uuid.uuid4()))
        subnet = SubnetSpec(id=subnet_id, cidr="10.7.0.0/24", gateway_ip="10.7.0.1")
        nic = NicSpec(
            port_id=str(uuid.uuid4()),
            network_id=network_id,
            segment=int(network_id[:4], 16) + 1,
            mac=f"fa:16:3e:{network_id[:2]}:{network_id[2:4]}:{last:02x}",
            ip=f"10.7.0.{last}",
            subnet=subnet,
            rules=(EGRESS, PING),
        )
        return replace(nic, **fields)

    return make


@pytest.fixture
def rules() -> Callable[..., tuple[SecurityRule, ...]]:
    """``rules("ingress tcp 80", …)``: security rules in short."""

    def parse(*texts: str) -> tuple[SecurityRule, ...]:
        return tuple(_rule(text.split()) for text in texts)

    return parse


def _rule(words: Sequence[str]) -> SecurityRule:
    direction, *rest = words
    protocol = rest[0] if rest else None
    low, _, high = rest[1].partition("-") if len(rest) > 1 else ("", "", "")
    return SecurityRule(
        direction, protocol, int(low) if low else None, int(high or low) if low else None
    )
