"""Subnets, pools, addresses and MACs (IPv4): what is valid, what is the default, which one is next."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from itertools import pairwise

from domain.errors import BadRequest, Conflict

MAC_PREFIX = "fa:16:3e"
MIN_VNI, MAX_VNI = 1000, 2**24 - 1
MAX_PREFIX_LENGTH = 30
"""A subnet needs a network, a broadcast, a gateway and at least one guest address."""
_DENSE = 1024
"""Pools up to this size are looked at whole; in larger ones a random sample finds a free address."""
_SAMPLE = 64
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

Pool = Mapping[str, str]
"""{"start": ip, "end": ip}, both ends included."""


def invalid(message: str) -> BadRequest:
    """Neutron's error for a value that cannot be."""
    return BadRequest(f"Invalid input for operation: {message}.", "InvalidInput")


def parse_cidr(text: str) -> IPv4Network:
    """The IPv4 network a subnet may have. BadRequest says why not."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise invalid(f"'{text:.64}' is not a valid IP subnet") from None
    if not isinstance(network, IPv4Network):
        raise invalid(f"'{text:.64}' is an IPv6 subnet; only IPv4 is supported")
    if str(network) != text:
        raise invalid(f"'{text:.64}' isn't a recognized IP subnet cidr, '{network}' is recommended")
    if network.prefixlen > MAX_PREFIX_LENGTH or network.prefixlen == 0:
        raise invalid(
            f"the prefix length of '{text}' must be between 1 and {MAX_PREFIX_LENGTH}, to leave room for guests"
        )
    if (
        network.is_loopback
        or network.is_multicast
        or network.is_link_local
        or network.is_reserved
        or network.is_unspecified
    ):
        raise invalid(f"'{text}' is in a range that hosts cannot use")
    return network


def parse_address(text: str) -> IPv4Address:
    """An IPv4 address. BadRequest for anything else, IPv6 included."""
    try:
        address = ip_address(text)
    except ValueError:
        raise invalid(f"'{text:.64}' is not a valid IP address") from None
    if not isinstance(address, IPv4Address):
        raise invalid(f"'{text:.64}' is an IPv6 address; only IPv4 is supported")
    return address


def parse_prefix(text: str, ethertype: str = "IPv4") -> str:
    """A rule's or route's prefix in normal form: ``10.1.2.3`` → ``10.1.2.3/32``."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise invalid(f"'{text:.64}' is not a valid IP prefix") from None
    if f"IPv{network.version}" != ethertype:
        raise BadRequest(
            f"Conflicting value ethertype {ethertype} for CIDR {text:.64}",
            "SecurityGroupRuleParameterConflict",
        )
    return str(network)


def default_gateway(network: IPv4Network) -> str:
    """The first host address."""
    return str(network.network_address + 1)


def check_gateway(network: IPv4Network, gateway: str) -> str:
    """The gateway in normal form; it must be a host address of the subnet."""
    address = parse_address(gateway)
    if not is_host_address(network, address):
        raise invalid(f"Gateway '{gateway}' is not a valid address on subnet '{network}'")
    return str(address)


def is_host_address(network: IPv4Network, address: IPv4Address) -> bool:
    """Whether a machine may have this address in this subnet."""
    return address in network and address not in (
        network.network_address,
        network.broadcast_address,
    )


def default_pools(network: IPv4Network, gateway: str | None) -> list[dict[str, str]]:
    """All host addresses but the gateway's, as one or two ranges."""
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    if gateway is None:
        return [_pool(first, last)]
    gap = int(IPv4Address(gateway))
    ranges = ((first, gap - 1), (gap + 1, last))
    return [_pool(start, end) for start, end in ranges if start <= end]


def _pool(start: int, end: int) -> dict[str, str]:
    return {"start": str(IPv4Address(start)), "end": str(IPv4Address(end))}


def check_pools(
    network: IPv4Network, pools: Sequence[Pool], gateway: str | None
) -> list[dict[str, str]]:
    """The pools in normal form, sorted: within the subnet, apart from each other and the gateway."""
    ranges = sorted(
        (int(parse_address(pool["start"])), int(parse_address(pool["end"]))) for pool in pools
    )
    for start, end in ranges:
        shown = f"{IPv4Address(start)}-{IPv4Address(end)}"
        if start > end:
            raise BadRequest(f"The allocation pool {shown} is not valid.", "InvalidAllocationPool")
        if not all(is_host_address(network, IPv4Address(edge)) for edge in (start, end)):
            raise BadRequest(
                f"The allocation pool {shown} spans beyond the subnet cidr {network}.",
                "OutOfBoundsAllocationPool",
            )
        if gateway is not None and start <= int(IPv4Address(gateway)) <= end:
            raise Conflict(
                f"Gateway ip {gateway} conflicts with allocation pool {shown}.",
                "GatewayConflictWithAllocationPools",
            )
    for (_, end), (start, last) in pairwise(ranges):
        if start <= end:
            raise Conflict(
                f"Found overlapping allocation pools at {IPv4Address(start)}-{IPv4Address(last)} for subnet {network}.",
                "OverlappingAllocationPools",
            )
    return [_pool(start, end) for start, end in ranges]


def _ranges(pools: Sequence[Pool]) -> list[range]:
    return [range(int(IPv4Address(p["start"])), int(IPv4Address(p["end"])) + 1) for p in pools]


def pool_size(pools: Sequence[Pool]) -> int:
    """How many addresses the pools hold."""
    return sum(len(r) for r in _ranges(pools))


def candidates(pools: Sequence[Pool], rng: random.Random) -> list[str] | None:
    """A few addresses to try, in random order, or None when the pools are small enough (or so full
    that the sample was of no use) to be looked at whole by ``choose_free``.

    Random, so that two allocations at once seldom want the same address and a freed one rests a while.
    """
    ranges = _ranges(pools)
    total = sum(len(r) for r in ranges)
    if total <= _DENSE:
        return None
    return [
        str(IPv4Address(_nth(ranges, position))) for position in rng.sample(range(total), _SAMPLE)
    ]


def _nth(ranges: Sequence[range], position: int) -> int:
    for r in ranges:
        if position < len(r):
            return r[position]
        position -= len(r)
    raise IndexError(position)


def choose_free(pools: Sequence[Pool], used: Iterable[str], rng: random.Random) -> str | None:
    """A random free address of the pools, or None when they are full. Looks at every address."""
    taken = {int(IPv4Address(ip)) for ip in used}
    free = [n for r in _ranges(pools) for n in r if n not in taken]
    return str(IPv4Address(rng.choice(free))) if free else None


def new_mac(rng: random.Random) -> str:
    """A MAC under OpenStack's prefix, ``fa:16:3e:xx:xx:xx``."""
    tail = rng.getrandbits(24)
    return f"{MAC_PREFIX}:{tail >> 16:02x}:{tail >> 8 & 255:02x}:{tail & 255:02x}"


def parse_mac(text: str) -> str:
    """A unicast MAC in lower case with colons. BadRequest otherwise."""
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or mac == "00:00:00:00:00:00" or int(mac[:2], 16) & 1:
        raise invalid(f"'{text:.64}' is not a valid MAC address")
    return mac
