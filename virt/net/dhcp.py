"""DHCP and DNS for the guests of one network: a dnsmasq in the network's namespace that knows only our ports."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path

from domain.errors import GuestFailure
from domain.guest import SubnetSpec
from virt.net import kernel
from virt.net.records import Port
from virt.net.segment import METADATA_IP, Segment

LEASE_S = 86400
_STOP_S = 5.0
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@dataclass(frozen=True, slots=True)
class Dhcp:
    """The dnsmasq of one network on one host.

    Its files lie in ``folder``, outside any private directory: dnsmasq gives up root before it reads
    them a second time.
    """

    segment: Segment
    folder: Path
    domain: str

    def ensure(self) -> None:
        """Make dnsmasq serve exactly the network's ports; no dnsmasq if no subnet has DHCP."""
        served = [s for s in self.segment.subnets if s.enable_dhcp]
        if not served:
            self.remove()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        config_is_new = _replace(self._config, self._render_config(served))
        before = _lines(self._hosts)
        hosts = self._render_hosts({s.id for s in served})
        hosts_are_new = _replace(self._hosts, hosts)
        pid = self._pid()
        # Only a restart makes dnsmasq forget a lease, and a lease blocks the address for its next owner.
        forgets = bool(before - set(hosts.splitlines()))
        if pid is not None and (config_is_new or forgets):
            self._stop(pid)
            pid = None
        if pid is None:
            kernel.run(["dnsmasq", f"--conf-file={self._config}"], netns=self.segment.netns)
        elif hosts_are_new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    def remove(self) -> None:
        """Stop dnsmasq and remove its files."""
        pid = self._pid(anywhere=True)
        if pid is not None:
            self._stop(pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _config(self) -> Path:
        return self.folder / "dnsmasq.conf"

    @property
    def _hosts(self) -> Path:
        return self.folder / "hosts"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "dnsmasq.pid"

    def _pid(self, anywhere: bool = False) -> int | None:
        """The process id of our dnsmasq if it runs, and in the namespace as it is now unless ``anywhere``."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        if f"--conf-file={self._config}".encode() not in command:
            return None  # the number belongs to another process by now
        if anywhere or kernel.same_namespace(self.segment.netns, pid):
            return pid
        self._stop(pid)
        return None

    def _stop(self, pid: int) -> None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], _STOP_S)[0]:
                    return
        finally:
            os.close(handle)
        raise GuestFailure(f"dnsmasq {pid} does not stop")

    def _render_config(self, subnets: Sequence[SubnetSpec]) -> str:
        lines = [
            f"pid-file={self._pid_file}",
            f"dhcp-hostsfile={self._hosts}",
            f"log-facility={self.folder / 'dnsmasq.log'}",
            "interface=gw0",
            "except-interface=lo",
            "bind-interfaces",
            "no-hosts",
            "leasefile-ro",
            "quiet-dhcp",
            "no-ping",
            "dhcp-authoritative",
            f"domain={self.domain}",
            _upstream(),
        ]
        for subnet in subnets:
            lines += _render_subnet(subnet, self.segment.mtu)
        return "\n".join(lines) + "\n"

    def _render_hosts(self, served: set[str]) -> str:
        return "".join(
            sorted(
                _render_host(port) for port in self.segment.ports if port.nic.subnet.id in served
            )
        )


def entries_below(folder: Path) -> dict[str, str]:
    """port id → server id of all DHCP entries in the folders below this one."""
    found: dict[str, str] = {}
    for hosts in sorted(folder.glob("*/hosts")):
        found.update(_entries(hosts))
    return found


def upstream_servers() -> list[str]:
    """The IPv4 name servers of the host that its guests can use, too."""
    found = (_name_servers(path) for path in _RESOLV_CONF)
    return next((servers for servers in found if servers), [])


def _upstream() -> str:
    for path in _RESOLV_CONF:
        if _name_servers(path):
            return f"resolv-file={path}"
    return "no-resolv"


def _name_servers(path: Path) -> list[str]:
    """IPv4 name servers of a resolver file, without loopback addresses: those mean another machine inside."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            word, _, rest = line.partition(" ")
            with contextlib.suppress(AddressValueError):
                if word == "nameserver" and not IPv4Address(rest.strip()).is_loopback:
                    found.append(rest.strip())
    return list(dict.fromkeys(found))


def _render_subnet(subnet: SubnetSpec, mtu: int) -> list[str]:
    prefix = IPv4Network(subnet.cidr)
    tag = _subnet_tag(subnet.id)
    option = f"dhcp-option=tag:{tag},option:"
    gateway = subnet.gateway_ip
    # A destination by way of 0.0.0.0 is on the link itself.
    own = [(to, hop) for to, hop in subnet.host_routes if ":" not in to]
    routes = [*own, (f"{METADATA_IP}/32", gateway or "0.0.0.0")]
    if gateway and not any(destination == "0.0.0.0/0" for destination, _hop in routes):
        routes.append(("0.0.0.0/0", gateway))
    flat = ",".join(f"{destination},{hop}" for destination, hop in routes)
    names = ",".join(ip for ip in subnet.dns_nameservers if ":" not in ip) or gateway or METADATA_IP
    lines = [
        f"dhcp-range=set:{tag},{prefix.network_address},static,{prefix.netmask},{LEASE_S}",
        f"{option}router,{gateway}" if gateway else f"{option}router",
        f"{option}dns-server,{names}",
        f"{option}classless-static-route,{flat}",
        f"dhcp-option=tag:{tag},249,{flat}",  # the same for old Windows
        f"{option}mtu,{mtu}",
    ]
    if not gateway:
        lines.append(f"shared-network=gw0,{prefix.network_address}")
    return lines


def _render_host(port: Port) -> str:
    """Two lines of the hosts file: whose entry it is, as a comment; then MAC, address, name.

    (A tag would say it better, but dnsmasq 2.90 crashes when it forgets an entry that has one.)
    """
    fields = [port.nic.mac.lower(), port.nic.ip]
    if _HOSTNAME.fullmatch(port.nic.hostname):
        fields.append(port.nic.hostname)
    return f"# {port.nic.port_id} {port.server_id}\n{','.join(fields)}\n"


def _entries(hosts: Path) -> dict[str, str]:
    owners = (line[2:].split(" ", 1) for line in _lines(hosts) if line.startswith("# "))
    return {words[0]: words[1] for words in owners}


def _subnet_tag(subnet_id: str) -> str:
    return f"subnet.{subnet_id}"


def _lines(path: Path) -> set[str]:
    try:
        return set(path.read_text().splitlines())
    except FileNotFoundError:
        return set()


def _replace(path: Path, content: str) -> bool:
    """Write a file that anybody may read, all at once; was it different?"""
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == content:
            return False
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(content)
    temporary.chmod(0o644)
    temporary.replace(path)
    return True
