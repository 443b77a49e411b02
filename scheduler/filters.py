"""Filters: each looks at one host and says why it will not do, or nothing. Room, zone, group, hints.

Filters that read flavors' and images' own words are in ``constraints``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from scheduler.model import HostState, Request

Fix = tuple[float, str]
Verdict = bool | str
"""False for a host that will do. Else the reason, or True when ``passes`` is to be asked for the words."""


def overrides(cls: type, said: str, quicker: str) -> bool:
    """Whether the quicker way that a class inherits is to what another class than its own method says."""
    owner = {name: base for base in reversed(cls.__mro__) for name in vars(base)}
    return cls.__mro__.index(owner[said]) < cls.__mro__.index(owner[quicker])


class Filter(ABC):
    """One reason to refuse a host. Stateless: one object serves every thread."""

    binds_forced: ClassVar[bool] = False
    """Whether it is asked also about a host that an administrator forced."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def concerns(self, request: Request) -> bool:
        """Whether this filter has anything to say about this request; asked once per decision."""
        return True

    @abstractmethod
    def passes(self, host: HostState, request: Request) -> str | None:
        """None when the host will do, else the reason in words."""

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        """A verdict for each of the hosts: what ``passes`` says of each, or a quicker way to the same."""
        said = [self.passes(host, request) for host in hosts]
        return [False if reason is None else reason or True for reason in said]

    def __init_subclass__(cls) -> None:
        if overrides(cls, "passes", "judge"):
            cls.judge = Filter.judge  # type: ignore[method-assign]  # for this class alone

    def fix(self, host: HostState, request: Request) -> Fix:
        """For a refused host: how far it is from passing (0 is near) and what it would take,
        continuing "host-3 …". Asked only when no host passed."""
        return 1.0, f"is refused by {self.name} ({self.passes(host, request)})"


class RequestedHostFilter(Filter):
    """The one host that was asked for, by service name or hypervisor host name."""

    binds_forced = True

    def concerns(self, request: Request) -> bool:
        return request.host is not None or request.node is not None

    def passes(self, host: HostState, request: Request) -> str | None:
        if request.host is not None and host.name != request.host:
            return f"host {request.host} was asked for"
        node = request.node
        if node is not None and host.facts.hypervisor_hostname != node:
            return f"hypervisor {node} was asked for"
        return None

    def fix(self, host: HostState, request: Request) -> Fix:
        return 100.0, f"is not the host that was asked for ({request.host or request.node})"


class RetryFilter(Filter):
    """Hosts on which this very operation has failed."""

    binds_forced = True

    def concerns(self, request: Request) -> bool:
        return bool(request.passed_over)

    def passes(self, host: HostState, request: Request) -> str | None:
        return "the build failed there before" if host.name in request.passed_over else None

    def fix(self, host: HostState, request: Request) -> Fix:
        return 10.0, "failed to build this server before"


class ComputeFilter(Filter):
    """Enabled and alive."""

    binds_forced = True

    def passes(self, host: HostState, request: Request) -> str | None:
        return host.down

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        return [host.down is not None for host in hosts]

    def fix(self, host: HostState, request: Request) -> Fix:
        return 1.0, f"is {host.down}"


class AvailabilityZoneFilter(Filter):
    """In the zone that was asked for."""

    binds_forced = True

    def concerns(self, request: Request) -> bool:
        return request.zone is not None

    def passes(self, host: HostState, request: Request) -> str | None:
        if host.facts.zone == request.zone:
            return None
        return f"zone {request.zone} asked, host is in {host.facts.zone}"

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        zone = request.zone
        return [host.facts.zone != zone for host in hosts]

    def fix(self, host: HostState, request: Request) -> Fix:
        return 2.0, f"is in zone {host.facts.zone}, not {request.zone}"


class CapacityFilter(Filter):
    """Room for the flavor: what is claimed stays within what may be claimed, and no server is larger
    than the physical host."""

    binds_forced = True

    def passes(self, host: HostState, request: Request) -> str | None:
        lacking = [
            f"{what}: {wanted}{unit} wanted, {room}{unit} free"
            for what, unit, wanted, room in _rooms(host, request)
            if wanted > room
        ]
        return ", ".join(lacking) or None

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        # what is not asked for need not be there, even where more is claimed than there is now
        vcpus, ram_mb, disk_gb = (
            wanted or float("-inf") for wanted in (request.vcpus, request.ram_mb, request.disk_gb)
        )
        return [
            ram_mb > host.free_ram_mb
            or vcpus > host.free_vcpus
            or disk_gb > host.free_disk_gb
            or ram_mb > host.facts.ram_mb
            or vcpus > host.facts.vcpus
            for host in hosts
        ]

    def fix(self, host: HostState, request: Request) -> Fix:
        lacking = [
            (wanted - room, wanted, f"{wanted - room}{unit} of {_LONG[what]}")
            for what, unit, wanted, room in _rooms(host, request)
            if wanted > room
        ]
        distance = sum(lack / wanted for lack, wanted, _ in lacking)
        return distance, "lacks " + " and ".join(words for _, _, words in lacking)


_LONG = {"ram": "RAM", "vcpus": "vCPUs", "disk": "disk"}


def _rooms(host: HostState, request: Request) -> tuple[tuple[str, str, int, int], ...]:
    """(what, unit, wanted, the most one server could get)."""
    facts = host.facts
    return (
        ("ram", " MB", request.ram_mb, max(0, min(host.free_ram_mb, facts.ram_mb))),
        ("vcpus", "", request.vcpus, max(0, min(host.free_vcpus, facts.vcpus))),
        ("disk", " GB", request.disk_gb, max(0, host.free_disk_gb)),
    )


class NumInstancesFilter(Filter):
    """Not more servers than a host may have."""

    def passes(self, host: HostState, request: Request) -> str | None:
        if host.usage.servers < host.facts.servers_limit:
            return None
        return f"{host.usage.servers} servers, at most {host.facts.servers_limit} allowed"

    def judge(self, hosts: Sequence[HostState], request: Request) -> Sequence[Verdict]:
        return [host.usage.servers >= host.facts.servers_limit for host in hosts]

    def fix(self, host: HostState, request: Request) -> Fix:
        return 1.0, f"has its maximum of {host.facts.servers_limit} servers"


class ServerGroupAffinityFilter(Filter):
    """With the other members of the group, once there are any."""

    binds_forced = True

    def concerns(self, request: Request) -> bool:
        group = request.group
        return group is not None and group.policy == "affinity" and bool(group.members)

    def passes(self, host: HostState, request: Request) -> str | None:
        members = request.group.members if request.group else {}
        if host.name in members:
            return None
        return f"the group's servers are on {', '.join(sorted(members)[:3])}"


class ServerGroupAntiAffinityFilter(Filter):
    """Not more members of the group on one host than it allows."""

    binds_forced = True

    def concerns(self, request: Request) -> bool:
        group = request.group
        return group is not None and group.policy == "anti-affinity" and bool(group.members)

    def passes(self, host: HostState, request: Request) -> str | None:
        group = request.group
        here = group.members.get(host.name, 0) if group else 0
        if group is None or here < group.max_server_per_host:
            return None
        return f"{here} of the group on the host, at most {group.max_server_per_host} allowed"

    def fix(self, host: HostState, request: Request) -> Fix:
        return 5.0, "already has its share of the anti-affinity group"


class SameHostFilter(Filter):
    """Hint ``same_host``: where any of these servers is."""

    def concerns(self, request: Request) -> bool:
        return request.same_hosts is not None

    def passes(self, host: HostState, request: Request) -> str | None:
        if host.name in (request.same_hosts or ()):
            return None
        return "none of the servers named by same_host is there"


class DifferentHostFilter(Filter):
    """Hint ``different_host``: where none of these servers is."""

    def concerns(self, request: Request) -> bool:
        return bool(request.different_hosts)

    def passes(self, host: HostState, request: Request) -> str | None:
        if host.name not in (request.different_hosts or ()):
            return None
        return "a server named by different_host is there"


ALWAYS: tuple[type[Filter], ...] = (RequestedHostFilter, RetryFilter)
BUILT_IN: tuple[type[Filter], ...] = (
    ComputeFilter,
    AvailabilityZoneFilter,
    CapacityFilter,
    NumInstancesFilter,
    ServerGroupAffinityFilter,
    ServerGroupAntiAffinityFilter,
    SameHostFilter,
    DifferentHostFilter,
)
