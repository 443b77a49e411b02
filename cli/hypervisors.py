"""Which hypervisors ``duranova up`` runs, and how each host worker is started."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from cli.datadir import DataDir, StartError
from runtime.sealing import host_key
from runtime.settings import Settings

SYSTEM_URI = "qemu:///system"
Relay = Callable[[Settings], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """One host worker process: its command line and surroundings."""

    name: str
    """Of the process and its log."""
    names: tuple[str, ...]
    """Of its hosts; more than one only with the fake driver."""
    arguments: tuple[str, ...]
    prefix: tuple[str, ...] = ()
    """Words before the program, e.g. to enter a namespace."""
    relays: tuple[Relay, ...] = ()
    stop: Callable[[], None] | None = None
    """Stops what runs beneath; its guests go on."""

    def environment(self, settings: Settings, number: int = 0) -> dict[str, str]:
        """What the process gets: its own hosts' keys, and no other secret. The first one (``number`` 0)
        serves metrics on the configured port, each further one on the next."""
        host, _, port = (settings.metrics_listen or "").rpartition(":")
        secret = settings.secret_key.get_secret_value()
        return {
            "DURANOVA_HOST_KEYS": json.dumps({n: host_key(secret, n) for n in self.names}),
            "DURANOVA_DATA_DIR": str(settings.data_dir),
            "DURANOVA_CONTROL_URL": settings.control_url,
            "DURANOVA_TEMPORAL_ADDRESS": settings.temporal_address,
            "DURANOVA_TEMPORAL_NAMESPACE": settings.temporal_namespace,
            "DURANOVA_METRICS_LISTEN": f"{host}:{int(port) + number}" if port.isdigit() else "",
            "DURANOVA_TEMPORAL_METRICS_LISTEN": "",  # that port is our own process's
        }


def plan_hypervisors(driver: str, hosts: int, data: DataDir) -> list[Hypervisor]:
    """Start what must run beneath the host workers and say how to run those. Blocking."""
    names = tuple(f"host-{n}" for n in range(1, hosts + 1))
    if driver == "fake":
        words = tuple(word for n in names for word in ("--name", n))
        arguments = ("--driver", "fake", *words, "--state-dir", str(data.path / "hosts"))
        return [Hypervisor("fake-hosts", names, arguments)]
    # Imported here and below: fake hosts need none of it, and it takes time.
    from virt.libvirt.connection import answers

    if os.geteuid() != 0:
        raise StartError("the libvirt driver needs root: use sudo, or --driver fake")
    if hosts == 1 and answers(SYSTEM_URI):
        return [_host(names[0], data, SYSTEM_URI, "/var/log/libvirt/qemu")]
    if hosts == 1:
        return [_private(names[0], data)]
    return [_private(name, data, number) for number, name in enumerate(names, 1)]


def _private(name: str, data: DataDir, number: int | None = None) -> Hypervisor:
    """A host on a libvirtd of its own; with a number it has a network of its own as well."""
    from cli.relay import relayed
    from virt.libvirt.private import NotStarted, PrivateLibvirtd
    from virt.net import uplink

    own = number is not None
    daemon = PrivateLibvirtd(data.path / "libvirt" / name, name, own_network=own)
    try:
        daemon.start()
    except NotStarted as error:
        raise StartError(f"no libvirt: {error}; `duranova doctor` says what is missing") from error
    host = _host(name, data, daemon.uri(), str(daemon.qemu_log_dir))
    netns = daemon.network_namespace
    if netns is None or number is None:
        return replace(host, stop=daemon.stop)
    address = uplink.ensure(netns, number)

    def relay(settings: Settings) -> AbstractAsyncContextManager[None]:
        ports = [urlsplit(settings.control_url).port, settings.temporal_address.rpartition(":")[2]]
        return relayed(netns, [int(p) for p in ports if p])

    return replace(
        host,
        arguments=(*host.arguments, "--host-ip", address),
        prefix=("nsenter", f"--net=/run/netns/{netns}"),
        relays=(relay,),
        stop=daemon.stop,
    )


def _host(name: str, data: DataDir, uri: str, log_dir: str) -> Hypervisor:
    arguments = ("--driver", "libvirt", "--name", name, "--libvirt-uri", uri)
    more = ("--qemu-log-dir", log_dir, "--state-dir", str(data.path / "hosts"))
    return Hypervisor(name, (name,), (*arguments, *more))
