"""The one libvirt host of a cloud, for those who kill it or clean up behind it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from chaos.guests import Guests, fake_guests, libvirt_guests
from cli.hypervisors import SYSTEM_URI
from virt.libvirt.private import PrivateLibvirtd
from virt.nics import HostNetwork

HOST = "host-1"


def private_libvirtd(data_dir: Path) -> PrivateLibvirtd:
    """The daemon that ``duranova up`` starts where the machine has none."""
    return PrivateLibvirtd(data_dir / "libvirt" / HOST, HOST, own_network=False)


def guests_of(driver: str, data_dir: Path) -> Guests:
    """What runs on the hosts of a cloud."""
    if driver == "fake":
        return fake_guests(data_dir / "hosts")
    private = private_libvirtd(data_dir)
    return libvirt_guests(SYSTEM_URI if private.pid() is None else private.uri(), HOST)


def remove_host(data_dir: Path) -> None:
    """Take away guests, daemon, wiring and filter tables, and let the images be removed."""
    state = data_dir / "hosts" / HOST / "network"
    HostNetwork(state, HOST, lambda *_: (404, {}, b"")).remove()
    private_libvirtd(data_dir).remove()
    # Images that guests stood on are immutable files, where the file system can do that.
    subprocess.run(["chattr", "-R", "-i", str(data_dir)], check=False, capture_output=True)
