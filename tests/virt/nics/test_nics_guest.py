"""A real guest, on a real tap, under QEMU."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from domain.guest import NicSpec
from domain.ids import tap_name
from tests.virt.nics.conftest import Lab, run
from virt.nics import HostNetwork

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parents[3]
IMAGE = REPOSITORY / "build" / "guest" / "tiny.qcow2"


@pytest.fixture(scope="module")
def image() -> Path:
    subprocess.run([REPOSITORY / "deploy" / "guest" / "build.sh"], check=True, timeout=500)
    return IMAGE


def test_real_guest_gets_its_address_asks_for_its_metadata_and_answers_the_host(
    image: Path, lab: Lab, network: HostNetwork, make_nic: Callable[..., NicSpec]
) -> None:
    nic = make_nic(10)
    network.plug("server-1", [nic])
    disk, console = lab.scratch / "disk.qcow2", lab.scratch / "console"
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, disk]
    subprocess.run(overlay, check=True)
    command = ["qemu-system-x86_64", "-accel", "tcg,tb-size=64", "-m", "96", "-nodefaults"]
    command += [
        "-display",
        "none",
        "-serial",
        f"file:{console}",
        "-drive",
        f"file={disk},if=virtio",
    ]
    tap = f"tap,id=n,ifname={tap_name(nic.port_id)},script=no,downscript=no"
    command += ["-netdev", tap, "-device", f"virtio-net-pci,netdev=n,mac={nic.mac}"]
    guest = subprocess.Popen(command)
    try:
        seen = _wait_for(console, guest, b"BOOT-OK")
        assert nic.ip.encode() in seen
        assert {(server_id, path) for server_id, _method, path, _headers in lab.asked} >= {
            ("server-1", "/openstack/latest/meta_data.json")
        }
        assert run("ping", "-c1", "-W5", nic.ip).returncode == 0
    finally:
        guest.kill()
        guest.wait()


def _wait_for(console: Path, guest: subprocess.Popen[bytes], text: bytes) -> bytes:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and guest.poll() is None:
        seen = console.read_bytes() if console.exists() else b""
        if text in seen:
            return seen
        time.sleep(0.2)
    raise AssertionError(f"the guest never said {text!r}: {console.read_bytes()[-500:]!r}")
