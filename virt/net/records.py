"""What this host has been asked to wire, in files: the truth that kernel state is made to match."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from domain.guest import NicSpec, SubnetSpec
from domain.ids import tap_name

T = TypeVar("T")

_log = logging.getLogger(__name__)

MARK_BASE = 0xD600_0000
"""Port marks carry this signature, so that no other firewall takes them for its own."""


@dataclass(frozen=True, slots=True)
class Port:
    """A plugged port."""

    server_id: str
    nic: NicSpec
    number: int
    """16 bits, unique on this host; marks the port's packets inside the bridge, and its connections."""
    written: int = field(default_factory=time.time_ns)
    """When this record was made; of two descriptions of one subnet the later holds."""
    since: int = field(default_factory=time.time_ns)
    """When the port was first plugged; of two ports with one address the host knows the earlier."""

    @property
    def tap(self) -> str:
        """The port's device."""
        return tap_name(self.nic.port_id)

    @property
    def mark(self) -> int:
        """The packet mark that stands for this port."""
        return MARK_BASE | self.number


@dataclass(frozen=True, slots=True)
class Network:
    """A network that has at least one port here."""

    id: str
    segment: int
    zone: int
    """Conntrack zone: keeps equal addresses on two networks apart."""
    transit: str
    """First address of the /31 between the host (first) and the network's namespace (second)."""


_PORT = TypeAdapter(Port)
_NETWORK = TypeAdapter(Network)


class Records:
    """The ports and networks of one host; each is one file, replaced atomically."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self.instance = ""
        """Names this set of records, wherever it is kept; empty until loaded."""
        self._ports_dir = state_dir / "ports"
        self._networks_dir = state_dir / "networks"
        self.ports: dict[str, Port] = {}
        self.networks: dict[str, Network] = {}

    def load(self) -> None:
        """Read all records anew."""
        self.instance = self._load_instance()
        for folder in (self._ports_dir, self._networks_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self.ports = {p.nic.port_id: p for p in _read(self._ports_dir, _PORT)}
        self.networks = {n.id: n for n in _read(self._networks_dir, _NETWORK)}

    def _load_instance(self) -> str:
        path = self._state_dir / "instance"
        if not path.exists():
            self._state_dir.mkdir(parents=True, exist_ok=True)
            _write(path, secrets.token_hex(4).encode())
        return path.read_text()

    def put_port(self, port: Port) -> None:
        """Record a port, or its newer description."""
        _write(self._ports_dir / f"{port.nic.port_id}.json", _PORT.dump_json(port))
        self.ports[port.nic.port_id] = port

    def drop_port(self, port_id: str) -> None:
        """Forget a port."""
        (self._ports_dir / f"{port_id}.json").unlink(missing_ok=True)
        self.ports.pop(port_id, None)

    def put_network(self, network: Network) -> None:
        """Record a network."""
        _write(self._networks_dir / f"{network.id}.json", _NETWORK.dump_json(network))
        self.networks[network.id] = network

    def drop_network(self, network_id: str) -> None:
        """Forget a network."""
        (self._networks_dir / f"{network_id}.json").unlink(missing_ok=True)
        self.networks.pop(network_id, None)

    def of_server(self, server_id: str) -> list[Port]:
        """A server's ports."""
        return [p for p in self.ports.values() if p.server_id == server_id]

    def owner(self, network_id: str, ip: str) -> str | None:
        """The server with this address on this network, if any."""
        ports = list(self.ports.values())  # asked by metadata's threads while ports come and go
        return next(
            (p.server_id for p in ports if p.nic.network_id == network_id and p.nic.ip == ip), None
        )

    def of_network(self, network_id: str) -> list[Port]:
        """A network's ports on this host, the latest described last."""
        found = [p for p in self.ports.values() if p.nic.network_id == network_id]
        return sorted(found, key=lambda p: p.written)

    def free_number(self) -> int:
        """A port number not in use, by chance: one that was given up should not come back soon."""
        used = {p.number for p in self.ports.values()}
        return secrets.choice([n for n in range(1, 0x10000) if n not in used])


def subnets_of(ports: Iterable[Port]) -> list[SubnetSpec]:
    """The subnets these ports are on, each once, by id."""
    found = {p.nic.subnet.id: p.nic.subnet for p in ports}
    return [found[key] for key in sorted(found)]


def _read(folder: Path, kind: TypeAdapter[T]) -> list[T]:
    found: list[T] = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(kind.validate_json(path.read_bytes()))
        except ValidationError:
            _log.exception("unreadable record %s is left out", path)
    return found


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
