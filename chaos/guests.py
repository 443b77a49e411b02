"""What hypervisors really run, read past the product's own host workers."""

from __future__ import annotations

import json
from pathlib import Path

from domain.ids import guest_name
from domain.states import PowerState
from virt.libvirt.connection import Connection

Guests = dict[str, dict[str, PowerState]]
"""host → server id → what runs there."""
_PREFIX = guest_name("")


def fake_guests(hosts_dir: Path) -> Guests:
    """What the fake hosts hold on disk."""
    found: Guests = {}
    for host in sorted(p for p in hosts_dir.iterdir() if p.is_dir()):
        found[host.name] = {}
        for file in host.glob("guests/*.json"):
            try:
                power = json.loads(file.read_text())["power"]
            except FileNotFoundError:
                continue  # destroyed while we looked
            found[host.name][file.stem] = PowerState(power)
    return found


def libvirt_guests(uri: str, host: str) -> Guests:
    """The domains of one libvirtd. GuestFailure when it does not answer."""
    connection = Connection(uri, lambda: None)
    connection.open()
    try:
        domains = connection.domains(_PREFIX)
    finally:
        connection.close()
    return {host: {d.name.removeprefix(_PREFIX): d.power for d in domains}}
