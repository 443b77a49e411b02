"""What to run on a host, hypervisor-neutral: the only thing a host ever learns about a server."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fence:
    """A fencing token. ``epoch`` grows with each claim of the server; a host that destroyed the guest
    under epoch *e* refuses every later spawn with an epoch of *e* or less."""

    epoch: int
    operation_id: str


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image to fetch from the image service and cache by its content."""

    id: str
    checksum: str
    """SHA-512 of the stored bytes, hex; the cache key."""
    disk_format: str
    """``qcow2`` or ``raw``: as declared and verified at upload, never probed again."""
    size_bytes: int
    properties: dict[str, str] = field(default_factory=dict)
    """``hw_*``/``os_*`` image properties that shape the guest."""


@dataclass(frozen=True, slots=True)
class SecurityRule:
    """One allow rule, already resolved: a direction, a protocol, a port range, a peer."""

    direction: str
    """``ingress`` or ``egress``."""
    protocol: str | None = None
    """``tcp``, ``udp``, ``icmp``, a protocol number as text, or ``None`` for any."""
    port_min: int | None = None
    """First port; for icmp the type."""
    port_max: int | None = None
    """Last port; for icmp the code."""
    remote_cidr: str | None = None
    """The peer's IPv4 prefix; ``None`` with no ``remote_ips`` is anybody."""
    remote_ips: tuple[str, ...] | None = None
    """Addresses of the members of a remote group; empty means nobody."""


@dataclass(frozen=True, slots=True)
class SubnetSpec:
    """The IPv4 subnet of a port's network as the host's gateway and DHCP server need it."""

    id: str
    cidr: str
    gateway_ip: str | None
    dns_nameservers: tuple[str, ...] = ()
    host_routes: tuple[tuple[str, str], ...] = ()
    """(destination, nexthop) pairs."""
    enable_dhcp: bool = True


@dataclass(frozen=True, slots=True)
class NicSpec:
    """One network card: the port it stands for and all a host needs to wire it."""

    port_id: str
    network_id: str
    segment: int
    """The network's VNI, unique in the cloud; also keeps overlapping subnets apart."""
    mac: str
    ip: str
    subnet: SubnetSpec
    mtu: int = 1450
    hostname: str = ""
    port_security: bool = True
    """Anti-spoofing and security groups apply."""
    rules: tuple[SecurityRule, ...] = ()
    allowed_pairs: tuple[str, ...] = ()
    """Further source addresses or prefixes this port may use (``allowed_address_pairs``)."""
    vnic_model: str = "virtio"


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """Everything a host needs to build a guest. It holds no secret in clear."""

    server_id: str
    name: str
    project_id: str
    vcpus: int
    ram_mb: int
    disk_gb: int
    """Root disk size; 0 keeps the image's virtual size."""
    image: ImageRef
    hostname: str = ""
    ephemeral_gb: int = 0
    swap_mb: int = 0
    extra_specs: dict[str, str] = field(default_factory=dict)
    nics: tuple[NicSpec, ...] = ()
    config_drive: bool = False
    """The host fetches its files from the control plane; they may hold secrets."""


STAGES = ("image", "disk", "config_drive", "nics", "define", "start")
"""The stages of a build on a host, in their order."""


@dataclass(frozen=True, slots=True)
class StageTaken:
    """One stage of a driver's call, as its host saw it."""

    name: str
    started_at: float
    """Seconds since 1970, by the host's clock."""
    finished_at: float
    error: str | None = None
    """Why it failed; None when it did not."""


@dataclass(frozen=True, slots=True)
class GuestReport:
    """What a host sees of one guest; power states are ``domain.states.PowerState`` values."""

    server_id: str
    power_state: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a host has; reported, never asked."""

    vcpus: int
    ram_mb: int
    disk_gb: int
    hypervisor_type: str
    hypervisor_version: int
    """libvirt's number form: major*1000000 + minor*1000 + release."""
    hypervisor_hostname: str
    cpu_arch: str = "x86_64"
    cpu_model: str = ""
    capabilities: tuple[str, ...] = ()
    """Scheduler traits, e.g. ``COMPUTE_ACCEL_KVM``, ``COMPUTE_ACCEL_TCG``, ``HW_ARCH_X86_64``."""
    host_ip: str = "127.0.0.1"
    uuid: str = ""
    """The hypervisor's own identity (libvirt's host UUID)."""
