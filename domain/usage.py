"""What is in use on a host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """The sum of a host's claims."""

    vcpus: int = 0
    ram_mb: int = 0
    disk_gb: int = 0
    servers: int = 0
    building: int = 0
    """Claims whose server is not active yet: the host's IO operations."""


NOTHING_USED = Usage()
