"""Weighers: one number per host. Numbers are brought to 0..1 over the hosts that passed, then multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod

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


class RAMWeigher(Weigher):
    """Free memory: spreads; with a negative multiplier it stacks."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.facts.ram_mb_limit - host.usage.ram_mb


class CPUWeigher(Weigher):
    """Free vCPUs."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.facts.vcpus_limit - host.usage.vcpus


class DiskWeigher(Weigher):
    """Free disk."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.facts.disk_gb_limit - host.usage.disk_gb


class NumInstancesWeigher(Weigher):
    """Servers on the host; a negative multiplier spreads."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.usage.servers


class IoOpsWeigher(Weigher):
    """Servers that are being built; a negative multiplier prefers idle hosts."""

    def weigh(self, host: HostState, request: Request) -> float:
        return host.usage.building


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
