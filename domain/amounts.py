"""What a server takes of its host."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

_GIB = 1024**3


def amounts(flavor: Mapping[str, Any], image: Mapping[str, Any]) -> tuple[int, int, int]:
    """(vCPUs, RAM in MB, disk in GB) that a server with these copies of flavor and image takes of a host.

    Disk is root, ephemeral and swap together; a root disk of 0 is as large as its image. The extra specs
    ``resources:VCPU|MEMORY_MB|DISK_GB`` replace an amount, as an administrator's word on the flavor.
    """
    specs: Mapping[str, str] = flavor.get("extra_specs") or {}
    root = flavor["disk_gb"] or _image_gb(image)
    disk = root + flavor.get("ephemeral_gb", 0) + ceil(flavor.get("swap_mb", 0) / 1024)
    return (
        _replaced(specs, "VCPU", flavor["vcpus"]),
        _replaced(specs, "MEMORY_MB", flavor["ram_mb"]),
        _replaced(specs, "DISK_GB", disk),
    )


def _replaced(specs: Mapping[str, str], resource: str, amount: int) -> int:
    text = specs.get(f"resources:{resource}", "")
    return int(text) if text.isdecimal() else amount


def _image_gb(image: Mapping[str, Any]) -> int:
    size = image.get("virtual_size") or image.get("size_bytes") or 0
    return max(ceil(size / _GIB), image.get("min_disk") or 0)
