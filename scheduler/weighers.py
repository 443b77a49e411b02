"""Weighers: one number per host. Numbers are brought to 0..1 over the hosts that passed, then multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from scheduler.filters import overrides
from scheduler.model import HostState, Request


class Weigher(ABC):
    """One opinion on which host is better; its multiplier's sign says whether more is better."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def concerns(self, request: Request) -> bool:
        """Whether this weigher has anything to say about this request; asked once per decision."""
        return True

    @abstractmethod
    def weigh(self, host: HostState, request: Request) -> float:
        """The host's number, in any unit."""

    def column(self, hosts: Sequence[HostState], request: Request) -> Sequence[float]:
        """The number of each of the hosts: what ``weigh`` says of each, or a quicker way to the same."""
        return [self.weigh(host, request) for host in hosts]

    def __init_subclass__(cls) -> None:
        if overrides(cls, "weigh", "column"):
            cls.column = Weigher.column  # type: ignore[method-assign]  # for this class alone


class RAMWeigher(Weigher):
    """Free memory: spreads; with a negative multiplier it stacks."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.free_ram_mb

    def column(self, hosts: Sequence[HostState], request: Request) -> Sequence[float]:
        return [host.free_ram_mb for host in hosts]


class CPUWeigher(Weigher):
    """Free vCPUs."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.free_vcpus

    def column(self, hosts: Sequence[HostState], request: Request) -> Sequence[float]:
        return [host.free_vcpus for host in hosts]


class DiskWeigher(Weigher):
    """Free disk."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.free_disk_gb

    def column(self, hosts: Sequence[HostState], request: Request) -> Sequence[float]:
        return [host.free_disk_gb for host in hosts]


class NumInstancesWeigher(Weigher):
    """Servers on the host; a negative multiplier spreads."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.usage.servers

    def column(self, hosts: Sequence[HostState], request: Request) -> Sequence[float]:
        return [host.usage.servers for host in hosts]


class IoOpsWeigher(Weigher):
    """Servers that are being built; a negative multiplier prefers idle hosts."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.usage.building

    def column(self, hosts: Sequence[HostState], request: Request) -> Sequence[float]:
        return [host.usage.building for host in hosts]


class ServerGroupSoftAffinityWeigher(Weigher):
    """Members of the group on the host."""

    def concerns(self, request: Request) -> bool:
        return request.group is not None and request.group.policy == "soft-affinity"

    def weigh(self, host: HostState, request: Request) -> float:
        return request.group.members.get(host.name, 0) if request.group else 0


class ServerGroupSoftAntiAffinityWeigher(Weigher):
    """Members of the group on the host, as a minus."""

    def concerns(self, request: Request) -> bool:
        return request.group is not None and request.group.policy == "soft-anti-affinity"

    def weigh(self, host: HostState, request: Request) -> float:
        return -request.group.members.get(host.name, 0) if request.group else 0


BUILT_IN: tuple[type[Weigher], ...] = (
    RAMWeigher,
    CPUWeigher,
    DiskWeigher,
    NumInstancesWeigher,
    IoOpsWeigher,
    ServerGroupSoftAffinityWeigher,
    ServerGroupSoftAntiAffinityWeigher,
)
