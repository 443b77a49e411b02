"""The tap device of a port: persistent, made before the guest starts and kept while it is off."""

from __future__ import annotations

from virt.net import kernel
from virt.net.records import Port
from virt.net.segment import Segment

_OWNER = "duranova:"


def ensure(port: Port, segment: Segment) -> None:
    """Make the tap, a port of its network's bridge, and bring it up. Its rules must be there already.

    A device of the name that exists is taken as it is.
    """
    existing = kernel.links()
    if port.tap not in existing:
        kernel.ip([f"tuntap add dev {port.tap} mode tap"])
    secured = port.nic.port_security
    # Nobody learns from a secured port: the bridge is told where its MAC is, and sends it nothing else.
    loose = "off" if secured else "on"
    kernel.ip(
        [
            # The kernel's side must not have the guest's own MAC.
            f"link set {port.tap} address fe{port.nic.mac.lower()[2:]} alias {_alias(segment.host)}{port.server_id}",
            f"link set {port.tap} mtu {port.nic.mtu} addrgenmode none master {segment.bridge}",
            f"link set {port.tap} type bridge_slave learning {loose} flood {loose}",
        ]
    )
    if secured:
        kernel.bridge([f"fdb replace {port.nic.mac.lower()} dev {port.tap} master static"])
    kernel.ip([f"link set {port.tap} up"])


def remove(port: Port) -> None:
    """Remove the tap."""
    if port.tap in kernel.links():
        kernel.ip([f"link delete {port.tap}"])


def present(host: str) -> dict[str, str]:
    """tap → server id of all taps of this host that exist."""
    mine = _alias(host)
    return {
        name: link["ifalias"].removeprefix(mine)
        for name, link in kernel.links().items()
        if link.get("ifalias", "").startswith(mine)
    }


def _alias(host: str) -> str:
    return f"{_OWNER}{host}:"
