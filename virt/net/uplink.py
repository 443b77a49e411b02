"""The way out of a host that lives in a network namespace of its own: a veth pair to the machine.

Several hypervisors on one machine are wired like this by ``duranova up``: each has an underlay
address, reaches the other hosts through the machine, and the world behind the machine's address.
"""

from __future__ import annotations

from virt.net import kernel

_PREFIX = "100.126"
"""From the shared address space (RFC 6598), beside the transit addresses of networks."""
_INSIDE = "uplink0"
_TABLE = """
table ip duranova-uplink
delete table ip duranova-uplink
table ip duranova-uplink {{
  chain out {{
    type nat hook postrouting priority srcnat;
    ip saddr {prefix}.0.0/16 oifname != "dnx*" masquerade
  }}
}}
"""


def ensure(netns: str, number: int) -> str:
    """Wire the namespace of host ``number`` (from 1 up to 255) and return its underlay address."""
    outside, address, gateway = f"dnx{number}", f"{_PREFIX}.{number}.2", f"{_PREFIX}.{number}.1"
    if outside not in kernel.links():
        kernel.ip([f"link add {outside} type veth peer name {_INSIDE} netns {netns}"])
    kernel.ip([f"addr replace {gateway}/30 dev {outside}", f"link set {outside} up"])
    kernel.ip(
        [
            f"addr replace {address}/30 dev {_INSIDE}",
            f"link set {_INSIDE} up",
            "link set lo up",
            f"route replace default via {gateway}",
        ],
        netns,
    )
    kernel.set_sysctls({"net/ipv4/ip_forward": "1"})
    kernel.nft(_TABLE.format(prefix=_PREFIX))
    return address
