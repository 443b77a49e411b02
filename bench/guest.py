"""A real guest: what Duranova adds to the time that libvirt and QEMU need for it.

One guest at a time, and no other beside it: POST → ACTIVE through the API; the guest's definition is read from
libvirt and the server is deleted. Then the same guest without Duranova, timed from nothing to running:
``qemu-img create`` of the overlay on the same base image, define and start by the same calls of the
libvirt binding, with a tap that libvirt makes itself. The overhead is the difference of the medians of a round.
What is not in the baseline is ours: the record, the scheduler, Temporal, the network's filters and
addresses, the fence and its ledger, and the wait of the client that polls.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import psutil

from bench.cloud import OwnCloud, Plan, Target, own_cloud
from bench.lifecycle import One, alone_pace, create_one, delete_one
from bench.measure import Results, say
from domain.guest import STAGES
from domain.ids import new_id

GUESTS = 5
"""In each round."""
_BARE = ("disk", "define", "start")
"""Stages of a build that the guest needs without us, too."""
_ROOT = Path(__file__).parents[1]
_IMAGE = _ROOT / "build" / "guest" / "tiny.qcow2"
_BUILD = _ROOT / "deploy" / "guest" / "build.sh"
_URI = re.compile(r"--libvirt-uri (\S+)")


async def rounds(microversion: str, count: int, results: Results) -> None:
    """So many rounds on a cloud of our own with one libvirt host; needs root."""
    if os.geteuid() != 0:
        raise PermissionError("the libvirt driver needs root")
    from chaos.hypervisor import remove_host  # noqa: PLC0415  # only hosts have the libvirt binding

    if not _IMAGE.exists():
        say("guest: building the image")
        await asyncio.to_thread(subprocess.run, [_BUILD], check=True, stdout=subprocess.DEVNULL)
    options = ("--driver", "libvirt", "--hosts", "1")
    async with own_cloud(Plan(options, microversion, image=_IMAGE, clean=remove_host)) as target:
        await _one(target, "warm")  # fetches the image
        for number in range(1, count + 1):
            say(f"guest, round {number}: {GUESTS} guests, each with and without us")
            seen = [await _one(target, f"guest-{number}-{n}") for n in range(GUESTS)]
            active, alone, stages = zip(*seen, strict=True)
            figures = {
                "guest_active": median(active),
                "guest_libvirt": median(alone),
                "guest_overhead": median(active) - median(alone),
                "guest_beyond_stages": median(
                    total - sum(taken.get(s, 0.0) for s in _BARE)
                    for total, taken in zip(active, stages, strict=True)
                ),
            }
            details = {
                "active_s": active,
                "libvirt_s": alone,
                "stages_s": {s: median(taken.get(s, 0.0) for taken in stages) for s in STAGES},
            }
            results.add("guest", figures, details)


async def _one(target: Target, name: str) -> tuple[float, float, dict[str, float]]:
    """Seconds until ACTIVE, seconds without us, and the seconds of each stage on the host."""
    assert target.own is not None
    pace = alone_pace()
    one = await create_one(target, name, pace)
    stages = await _stages(target, one)
    server_id = one.path.rpartition("/")[2]
    bare = BareGuest(_uri(target.own), server_id, target.own.data_dir.parent)
    await asyncio.to_thread(bare.read)
    await delete_one(target, one.path, pace)
    try:
        alone_s = await asyncio.to_thread(bare.boot)
    finally:
        await asyncio.to_thread(bare.remove)
    return one.active_s, alone_s, stages


async def _stages(target: Target, one: One) -> dict[str, float]:
    path = f"{one.path}/os-instance-actions/{one.request_id}"
    events = (await target.api.get("compute", path)).json()["instanceAction"]["events"]
    return {e["event"]: _seconds(e) for e in events if e["finish_time"]}


def _seconds(event: dict[str, Any]) -> float:
    began, ended = (datetime.fromisoformat(event[k]) for k in ("start_time", "finish_time"))
    return (ended - began).total_seconds()


def _uri(cloud: OwnCloud) -> str:
    """Of the libvirt that the cloud's host worker uses."""
    for process in cloud.find():
        with suppress(psutil.Error):
            if match := _URI.search(" ".join(process.cmdline())):
                return match.group(1)
    raise LookupError("no process of the cloud names a libvirt")


class BareGuest:
    """The same guest as a server's, by libvirt alone. All methods block."""

    def __init__(self, uri: str, server_id: str, directory: Path) -> None:
        import libvirt  # noqa: PLC0415  # only hosts have it

        self._libvirt = libvirt.open(uri)
        self._server_id, self._id = server_id, new_id()
        self._folder = directory / f"bare-{self._id}"
        self._xml = ""
        self._create: list[str] = []

    def read(self) -> None:
        """Take the definition and the disk of the server's guest, which runs."""
        domain = self._libvirt.lookupByUUIDString(self._server_id)
        root = ElementTree.fromstring(domain.XMLDesc(2))  # VIR_DOMAIN_XML_INACTIVE
        disk = root.find("devices/disk/source")
        assert disk is not None
        original = disk.get("file", "")
        for interface in root.iterfind("devices/interface"):
            for target in interface.findall("target"):
                interface.remove(target)  # libvirt makes a tap of its own
        name = root.find("name")
        assert name is not None
        name.text = f"bench-{self._id}"
        text = ElementTree.tostring(root, encoding="unicode")
        text = text.replace(str(Path(original).parent), str(self._folder))
        self._xml = text.replace(self._server_id, self._id)
        self._create = _overlay(original, str(self._folder / Path(original).name))

    def boot(self) -> float:
        """Make the disk, define, start; returns the seconds it took."""
        self._folder.mkdir(mode=0o700)
        began = time.perf_counter()
        subprocess.run(self._create, check=True)
        domain = self._libvirt.defineXML(self._xml)
        domain.create()
        took_s = time.perf_counter() - began
        state, _ = domain.state()
        assert state == 1, "it does not run"  # VIR_DOMAIN_RUNNING
        return took_s

    def remove(self) -> None:
        """Leave nothing."""
        for domain in self._libvirt.listAllDomains():
            if domain.UUIDString() == self._id:
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
        self._libvirt.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _overlay(original: str, copy: str) -> list[str]:
    """The command that makes another overlay like this one."""
    line = ["qemu-img", "info", "-U", "-f", "qcow2", "--output", "json", original]
    info = json.loads(subprocess.run(line, check=True, capture_output=True).stdout)
    backing = ["-F", info["backing-filename-format"], "-b", info["backing-filename"]]
    return ["qemu-img", "create", "-q", "-f", "qcow2", *backing, copy, str(info["virtual-size"])]
