"""The demo's guest: which image it boots, how one knows that it is up, and a login by ssh."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from oslo_utils.imageutils import format_inspector

from domain.errors import DuranovaError
from runtime.settings import Settings

BUILD = Path(__file__).parents[2] / "deploy" / "guest" / "build.sh"
BUILD_WITHIN_S = 900
_GIB = 1024**3
_FORMATS = {"qcow2": "qcow2", "raw": "raw", "gpt": "raw"}
"""What is found in a file → what the image service is told; a disk with a partition table is raw."""
_OURS_IS_UP = re.compile(r"^.*BOOT-OK .*$", re.MULTILINE)
_ANY_IS_UP = re.compile(r"^.*(BOOT-OK |Cloud-init v\. .* finished at|^\S+ login:).*$", re.MULTILINE)
_SSH_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=10",
    "IdentitiesOnly=yes",
    "LogLevel=ERROR",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
)


@dataclass(frozen=True, slots=True)
class Bootable:
    """An image file and the flavor that suits it."""

    file: Path
    format: str
    size: int
    ram_mb: int
    disk_gb: int
    is_up: re.Pattern[str]
    """Finds the line on its console that says so."""


def built_image(log: Path) -> Bootable:
    """The tiny guest, built first if it is not there or out of date. DuranovaError when it cannot be."""
    file = Settings().guest_dir / "tiny.qcow2"
    if BUILD.exists():
        with log.open("wb") as words:
            built = subprocess.run(
                [str(BUILD), str(file.parent)],
                check=False,
                stdout=words,
                stderr=words,
                timeout=BUILD_WITHIN_S,
            )
        if built.returncode != 0 and not file.exists():
            raise DuranovaError(
                f"the guest image cannot be built: {log.read_text(errors='replace').strip()}"
            )
    if not file.exists():
        raise DuranovaError(f"there is no {file}; give an image with --image")
    return Bootable(file, "qcow2", file.stat().st_size, 128, 1, _OURS_IS_UP)


def given_image(file: Path) -> Bootable:
    """Somebody's own image, qcow2 or raw. DuranovaError when it is another kind."""
    found = format_inspector.detect_file_format(str(file))
    if found is None or found.NAME not in _FORMATS:
        kind = found.NAME if found is not None else "not an image"
        raise DuranovaError(f"{file} is {kind}; convert it to qcow2 with qemu-img first")
    size = file.stat().st_size
    virtual_size = found.virtual_size if found.NAME == "qcow2" else size
    disk_gb = max(1, -(-virtual_size // _GIB))
    return Bootable(file, _FORMATS[found.NAME], size, 1024, disk_gb, _ANY_IS_UP)


def empty_image(file: Path) -> Bootable:
    """A blank disk, for a driver that boots nothing."""
    with file.open("wb") as disk:
        disk.truncate(1024**2)
    return Bootable(file, "raw", 1024**2, 128, 1, _ANY_IS_UP)


def ssh(key: Path, user: str, ip: str, command: str, within_s: float) -> str:
    """What the command prints in the guest; tried until the guest lets us in. DuranovaError if it
    never does."""
    words = ["ssh", "-F", "/dev/null", "-i", str(key)]
    words += [word for option in _SSH_OPTIONS for word in ("-o", option)]
    deadline = time.monotonic() + within_s
    while True:
        try:
            told = subprocess.run(
                [*words, f"{user}@{ip}", command],
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
            if told.returncode == 0:
                return told.stdout.strip()
            why = told.stderr.strip()
        except subprocess.TimeoutExpired:
            why = "no answer within 60 s"
        if time.monotonic() > deadline:
            raise DuranovaError(f"ssh {user}@{ip}: {why}")
        time.sleep(1)


def free_network() -> str:
    """An IPv4 network of 256 addresses that this machine has no route to."""
    routes = subprocess.run(
        ["ip", "-json", "-4", "route"], check=True, capture_output=True, text=True
    )
    taken = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in json.loads(routes.stdout)
        if route["dst"] != "default"
    ]
    for network in ipaddress.ip_network("10.87.0.0/16").subnets(new_prefix=24):
        if not any(network.overlaps(other) for other in taken):
            return str(network)
    raise DuranovaError("this machine has routes to all of 10.87.0.0/16")
