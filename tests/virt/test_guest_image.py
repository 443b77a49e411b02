"""The tiny guest image: built from packages, boots from its own disk, believes its config drive."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pycdlib
import pytest

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parents[2]
IMAGE = REPOSITORY / "build" / "guest" / "tiny.qcow2"


@pytest.fixture(scope="module")
def image() -> Path:
    subprocess.run([REPOSITORY / "deploy" / "guest" / "build.sh"], check=True, timeout=500)
    return IMAGE


@pytest.fixture
def disk(image: Path, tmp_path: Path) -> Path:
    """A private overlay, larger than the image, as a flavor's root disk is."""
    path = tmp_path / "disk.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, path, "200M"],
        check=True,
    )
    return path


def config_drive(path: Path, files: dict[str, bytes]) -> Path:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=4, joliet=3, rock_ridge="1.09", vol_ident="config-2")
    for folder in ("openstack", "openstack/latest"):
        iso.add_directory(f"/{folder}", rr_name=folder.split("/")[-1], joliet_path=f"/{folder}")
    for name, content in files.items():
        where = f"/openstack/latest/{name}"
        iso.add_fp(BytesIO(content), len(content), where, rr_name=name, joliet_path=where)
    iso.write(str(path))
    iso.close()
    return path


@contextmanager
def booted(console: Path, *drives: str) -> Iterator[subprocess.Popen[bytes]]:
    """A machine as SeaBIOS starts it: from the first disk, no kernel given."""
    command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-cpu", "qemu64"]
    command += ["-m", "96", "-nodefaults", "-display", "none", "-serial", f"file:{console}"]
    # restrict: the machine that runs the tests may have a metadata service of its own
    command += ["-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0"]
    command += ["-monitor", "stdio"]
    for drive in drives:
        command += ["-drive", f"{drive},if=virtio"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(console: Path, pattern: str, seconds: float = 120) -> re.Match[str]:
    deadline = time.monotonic() + seconds
    text = ""
    while time.monotonic() < deadline:
        text = console.read_text(errors="replace") if console.exists() else ""
        if found := re.search(pattern, text):
            return found
        time.sleep(0.2)
    pytest.fail(f"{pattern!r} never came on the console:\n{text[-2000:]}")


def test_guest_boots_from_its_own_disk_and_says_so(disk: Path, tmp_path: Path) -> None:
    console = tmp_path / "console"
    with booted(console, f"file={disk},format=qcow2"):
        line = wait_for(console, r"BOOT-OK (\S+) (\S+) md=(\S+) .*\n")
        assert line.groups() == ("tiny", "10.0.2.15", "none")
        assert "Duranova guest tiny is up at 10.0.2.15 (metadata: none)" in line[0]
        wait_for(console, r"tiny login:")


def test_guest_obeys_its_config_drive_and_the_power_button(disk: Path, tmp_path: Path) -> None:
    metadata = {
        "uuid": "5f4b6c1e-0000-4000-8000-000000000001",
        "hostname": "web-1",
        "public_keys": {"mine": "ssh-ed25519 AAAAC3NzaC1lZDI1 me@here\n"},
    }
    script = b"""#!/bin/sh
echo KEYS=$(cat /root/.ssh/authorized_keys)
echo ROOT_KIB=$(df -k / | awk 'NR == 2 {print $2}')
"""
    drive = config_drive(
        tmp_path / "config.iso",
        {"meta_data.json": json.dumps(metadata).encode(), "user_data": script},
    )
    console = tmp_path / "console"
    drives = f"file={disk},format=qcow2", f"file={drive},format=raw,readonly=on"
    with booted(console, *drives) as machine:
        wait_for(console, r"BOOT-OK web-1 10\.0\.2\.15 md=configdrive")
        wait_for(console, r"KEYS=ssh-ed25519 AAAAC3NzaC1lZDI1 me@here\r?\n")
        size = wait_for(console, r"ROOT_KIB=(\d+)")
        assert int(size[1]) > 150 * 1024, "the root file system fills the disk"
        assert machine.stdin
        machine.stdin.write(b"system_powerdown\n")
        machine.stdin.flush()
        wait_for(console, r"SHUTDOWN web-1")
        assert machine.wait(60) == 0
    before = console.read_text(errors="replace").count("KEYS=")
    with booted(tmp_path / "second", *drives):
        wait_for(tmp_path / "second", r"BOOT-OK web-1")
    again = (tmp_path / "second").read_text(errors="replace")
    assert (before, again.count("KEYS=")) == (1, 0), "user data runs once per instance"


def test_building_again_changes_nothing(image: Path) -> None:
    before = os.stat(image)
    subprocess.run([REPOSITORY / "deploy" / "guest" / "build.sh"], check=True, timeout=5)
    assert os.stat(image).st_mtime_ns == before.st_mtime_ns
