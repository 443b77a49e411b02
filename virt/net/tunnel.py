"""A network across hosts: one VXLAN device per network, flooding to the other hosts."""

from __future__ import annotations

from collections.abc import Sequence

from virt.net import kernel
from virt.net.segment import Segment

PORT = 4789


def ensure(segment: Segment, peers: Sequence[str]) -> None:
    """Make the network's tunnel reach exactly these underlay addresses; none removes it."""
    exists = segment.tunnel in kernel.links()
    if not peers:
        if exists:
            kernel.ip([f"link delete {segment.tunnel}"])
        return
    name = segment.tunnel
    if not exists:
        local = kernel.show("route", "get", peers[0])[0]["prefsrc"]
        kernel.ip(
            [
                f"link add {name} type vxlan id {segment.network.segment} dstport {PORT} local {local}"
            ]
        )
    kernel.ip([f"link set {name} mtu {segment.mtu} addrgenmode none master {segment.bridge} up"])
    _ensure_flooding(name, peers)


def _ensure_flooding(name: str, peers: Sequence[str]) -> None:
    rows = kernel.show_bridge("fdb", "show", "dev", name)
    everything = "00:00:00:00:00:00"
    present = {row["dst"] for row in rows if row["mac"] == everything and "dst" in row}
    kernel.bridge(
        [
            *(
                f"fdb delete {everything} dev {name} dst {old}"
                for old in sorted(present - set(peers))
            ),
            *(
                f"fdb append {everything} dev {name} dst {new}"
                for new in sorted(set(peers) - present)
            ),
        ]
    )
