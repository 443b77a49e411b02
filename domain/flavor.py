"""The grammar of flavor extra specs: which keys are known, and what values they take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from domain.errors import BadRequest

KEY = re.compile(r"[a-zA-Z0-9\-_:. ]{1,255}")
MAX_VALUE = 255
_TRUE_OR_FALSE = frozenset(
    ("1", "t", "true", "on", "y", "yes", "0", "f", "false", "off", "n", "no")
)
_GROUP = r"(?:[a-zA-Z0-9_-]{1,64})?"
_CPUS = r"\^?\d+(?:-\d+)?(?:,\^?\d+(?:-\d+)?)*"

Check = Callable[[str], str | None]
"""A value → why it is refused, or None."""


class Known(NamedTuple):
    """One family of extra specs."""

    key: re.Pattern[str]
    check: Check


def _any(_value: str) -> str | None:
    return None


def _boolean(value: str) -> str | None:
    if value.strip().lower() in _TRUE_OR_FALSE:
        return None
    return f"'{value}' is not a valid boolean-like value."


def _number(low: int | None = None, high: int | None = None) -> Check:
    def check(value: str) -> str | None:
        if not re.fullmatch(r"\s*[+-]?\d{1,30}\s*", value, re.ASCII):
            return f"'{value}' is not a valid integer value."
        if high is not None and int(value) > high:
            return f"'{value}' is greater than the max value of '{high}'."
        if low is not None and int(value) < low:
            return f"'{value}' is less than the min value of '{low}'."
        return None

    return check


def _one_of(*allowed: str) -> Check:
    def check(value: str) -> str | None:
        return None if value in allowed else f"'{value}' is not one of: {', '.join(allowed)}."

    return check


def _like(pattern: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str | None:
        return None if compiled.fullmatch(value) else f"'{value}' is not of the format '{pattern}'."

    return check


def _known(key: str, check: Check) -> Known:
    return Known(re.compile(key, re.ASCII), check)


_CAPABILITIES = (
    "id|uuid|service_id|host|vcpus|memory_mb|local_gb|vcpus_used|memory_mb_used|local_gb_used"
    "|hypervisor_type|hypervisor_version|hypervisor_hostname|free_ram_mb|free_disk_gb"
    "|current_workload|running_vms|disk_available_least|host_ip|mapped|cpu_allocation_ratio"
    "|ram_allocation_ratio|disk_allocation_ratio|total_usable_ram_mb|total_usable_disk_gb"
    "|disk_mb_used|free_disk_mb|vcpus_total|num_instances|num_io_ops|failed_builds|aggregates"
    "|cell_uuid|updated"
)
_CAPABILITY_TREES = (
    "cpu_info|metrics|stats|numa_topology|supported_hv_specs|pci_device_pools|nodename|pci_stats"
    "|supported_instances|limits|instances"
)
_RESOURCES = (
    "VCPU|PCPU|MEMORY_MB|DISK_GB|PCI_DEVICE|SRIOV_NET_VF|NUMA_SOCKET|NUMA_CORE|NUMA_THREAD"
    "|NUMA_MEMORY_MB|IPV4_ADDRESS|VGPU|VGPU_DISPLAY_HEAD|NET_BW_EGR_KILOBIT_PER_SEC"
    "|NET_BW_IGR_KILOBIT_PER_SEC|NET_PACKET_RATE_KILOPACKET_PER_SEC"
    "|NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC|NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC"
    "|MEM_ENCRYPTION_CONTEXT|FPGA|PGPU|CUSTOM_[A-Z0-9_]+"
)
_TRAITS = r"(?:CUSTOM|HW|COMPUTE|MISC|STORAGE|OWNER)_[A-Z0-9_]+"

KNOWN: tuple[Known, ...] = (
    _known(r"accel:device_profile", _any),
    _known(r"aggregate_instance_extra_specs:.+", _any),
    _known(rf"capabilities:(?:{_CAPABILITIES})", _any),
    _known(rf"capabilities:(?:{_CAPABILITY_TREES})(?::\w+)*", _any),
    _known(r"group_policy", _one_of("isolate", "none")),
    _known(r"hide_hypervisor_id", _boolean),
    _known(
        r"hw:(?:boot_menu|cpu_realtime|ephemeral_encryption|hide_hypervisor_id|locked_memory"
        r"|mem_encryption|pmu|vif_multiqueue_enabled|virtio_packed_ring)",
        _boolean,
    ),
    _known(r"hw:cpu_(?:max_)?(?:sockets|cores|threads)", _number(1)),
    _known(r"hw:cpu_dedicated_mask", _like(_CPUS)),
    _known(r"hw:cpu_policy", _one_of("dedicated", "shared", "mixed")),
    _known(r"hw:cpu_realtime_mask", _like(_CPUS)),
    _known(r"hw:cpu_thread_policy", _one_of("prefer", "isolate", "require")),
    _known(r"hw:emulator_threads_policy", _one_of("isolate", "share")),
    _known(r"hw:ephemeral_encryption_format", _one_of("plain", "luks", "luksv2")),
    _known(r"hw:mem_encryption_model", _one_of("amd-sev", "amd-sev-es", "amd-sev-snp")),
    _known(r"hw:mem_page_size", _like(r"(?:large|small|any|\d+(?:[kKMGT]i?)?(?:b|bit|B)?)")),
    _known(r"hw:numa_cpus\.\d+", _like(_CPUS)),
    _known(r"hw:numa_mem\.\d+", _number(1)),
    _known(r"hw:numa_nodes", _number(1)),
    _known(r"hw:pci_numa_affinity_policy", _one_of("required", "preferred", "legacy", "socket")),
    _known(r"hw:pmem", _like(r"[a-zA-Z0-9_]+(?:,[a-zA-Z0-9_]+)*,?")),
    _known(r"hw:redirected_usb_ports", _number(0, 15)),
    _known(r"hw:serial_port_count", _number(0)),
    _known(
        r"hw:sound_model",
        _one_of("sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb", "virtio"),
    ),
    _known(r"hw:tpm_model", _one_of("tpm-tis", "tpm-crb")),
    _known(r"hw:tpm_secret_security", _one_of("user", "host", "deployment")),
    _known(r"hw:tpm_version", _one_of("1.2", "2.0")),
    _known(r"hw:usb_model", _one_of("none", "nec-xhci", "qemu-xhci")),
    _known(r"hw:viommu_model", _one_of("intel", "smmuv3", "virtio", "auto")),
    _known(r"hw:watchdog_action", _one_of("none", "pause", "poweroff", "reset", "disabled")),
    _known(r"hw_rng:allowed", _boolean),
    _known(r"hw_rng:rate_(?:bytes|period)", _number(0)),
    _known(r"hw_video:ram_max_mb", _number(0)),
    _known(r"os:secure_boot", _one_of("disabled", "required")),
    _known(r"pci_passthrough:alias", _like(r"[^:]+:\d+(?:\s*,\s*[^:,]+:\d+)*")),
    _known(r"quota:(?:cpu|memory|disk_io|vif)_(?:limit|shares_share)", _number(0)),
    _known(r"quota:(?:cpu|memory|disk_io|vif)_reservation", _number()),
    _known(
        r"quota:(?:cpu|memory|disk_io|vif)_shares_level",
        _one_of("custom", "high", "normal", "low"),
    ),
    _known(r"quota:cpu_(?:shares|period)", _number(0)),
    _known(r"quota:cpu_quota", _number()),
    _known(r"quota:disk_(?:read|write|total)_(?:bytes|iops)_sec", _number(0)),
    _known(r"quota:vif_(?:inbound|outbound)_(?:average|peak|burst)", _number(0)),
    _known(rf"resources{_GROUP}:(?:{_RESOURCES})", _number()),
    _known(rf"trait{_GROUP}:{_TRAITS}", _one_of("required", "forbidden")),
)
_NAMESPACE = re.compile(
    rf"(?:accel|aggregate_instance_extra_specs|capabilities|hw|hw_rng|hw_video|os|pci_passthrough"
    rf"|quota|resources{_GROUP}|trait{_GROUP}):.*",
    re.ASCII,
)


def check_extra_spec(key: str, value: str) -> None:
    """BadRequest when the key lies in a known namespace and either it or its value is not proper.

    Keys outside every known namespace pass: they are the operator's own.
    """
    for known in KNOWN:
        if known.key.fullmatch(key):
            if reason := known.check(value):
                raise BadRequest(f"Validation failed; {reason}")
            return
    if _NAMESPACE.fullmatch(key):
        raise BadRequest(
            f"Validation failed; extra spec '{key}' does not appear to be a valid extra spec."
        )
