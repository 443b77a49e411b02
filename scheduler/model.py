"""What the scheduler sees: frozen snapshots of hosts and of one request. No row, no session, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from domain.usage import NOTHING_USED, Usage


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A set of hosts with metadata, as far as filters need it."""

    id: int
    name: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host is: it changes with a report or an operator's hand, not with each claim."""

    name: str
    zone: str
    """The availability zone it counts to: an aggregate's, else its own, else the default."""
    vcpus: int = 0
    """Physical amounts, as reported."""
    ram_mb: int = 0
    disk_gb: int = 0
    vcpus_limit: int = 0
    """How much may be claimed in all: physical, less what is reserved, times the overcommit ratio."""
    ram_mb_limit: int = 0
    disk_gb_limit: int = 0
    servers_limit: int = 0
    hypervisor_type: str = ""
    hypervisor_version: int = 0
    hypervisor_hostname: str = ""
    cpu_arch: str = "x86_64"
    cpu_model: str = ""
    host_ip: str = ""
    capabilities: frozenset[str] = frozenset()
    """Traits."""
    aggregates: tuple[Aggregate, ...] = ()


@dataclass(frozen=True, slots=True)
class HostState:
    """One host at the moment of a decision."""

    facts: HostFacts
    usage: Usage = NOTHING_USED
    down: str | None = None
    """Why it takes no server now (``disabled: …``, ``silent for 90 s``); None when it does."""

    name: str = field(init=False)
    free_vcpus: int = field(init=False)
    """Below zero where more is claimed than may be."""
    free_ram_mb: int = field(init=False)
    free_disk_gb: int = field(init=False)

    def __post_init__(self) -> None:
        # Made once, while a decision reads them for each of thousands of hosts.
        facts, usage, put = self.facts, self.usage, object.__setattr__
        put(self, "name", facts.name)
        put(self, "free_vcpus", facts.vcpus_limit - usage.vcpus)
        put(self, "free_ram_mb", facts.ram_mb_limit - usage.ram_mb)
        put(self, "free_disk_gb", facts.disk_gb_limit - usage.disk_gb)


@dataclass(frozen=True, slots=True)
class Group:
    """The server group of the server to place, without the server itself."""

    id: str
    policy: str
    """affinity, anti-affinity, soft-affinity, soft-anti-affinity."""
    max_server_per_host: int = 1
    members: Mapping[str, int] = field(default_factory=dict)
    """host → members on it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one server asks for, once: constraints belong to the operation, not to the server."""

    server_id: str
    project_id: str
    vcpus: int
    ram_mb: int
    disk_gb: int
    """Root, ephemeral and swap disks together."""
    zone: str | None = None
    host: str | None = None
    """The one host that was asked for, by its name."""
    node: str | None = None
    """The same by its hypervisor's host name."""
    forced: bool = False
    """The host was forced (``zone:host``): only filters that bind a forced host are asked."""
    extra_specs: Mapping[str, str] = field(default_factory=dict)
    image_properties: Mapping[str, str] = field(default_factory=dict)
    group: Group | None = None
    same_hosts: frozenset[str] | None = None
    """Hosts of the servers named by the hint ``same_host``; None without the hint."""
    different_hosts: frozenset[str] | None = None
    passed_over: frozenset[str] = frozenset()
    """Hosts on which this operation has failed already."""
    hints: Mapping[str, object] = field(default_factory=dict)
    """The scheduler hints as sent, for filters of other projects."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A host that passed, with its weights (weigher → normalised × multiplier)."""

    host: str
    total: float
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refused:
    """The hosts that one filter refused."""

    filter: str
    hosts: int
    best: str
    """The host that came closest, and the reason it was given."""
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome of one decision."""

    ranked: tuple[Ranked, ...]
    """Best first, at most as many as asked for."""
    hosts: int
    """How many hosts were looked at."""
    passed: int
    refusals: Mapping[str, str]
    """host → "Filter: reason", of the first so many by name; all are counted in ``refused``."""
    refused: tuple[Refused, ...] = ()
    """Per filter, in the order of the filters."""
    nearest: str = ""
    """The nearest fix, when no host passed and there is any host at all."""

    @property
    def counts(self) -> dict[str, int]:
        """Filter → how many hosts it refused."""
        return {row.filter: row.hosts for row in self.refused}
