"""Real guests through the real API: boot, log in by console, power, isolation, and a kill of everything."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.cloud import UpCloud
from tests.e2e.record import all_active, check_record
from tests.virt.waiting import eventually
from virt.libvirt.private import PrivateLibvirtd
from virt.nics import HostNetwork

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt]
BOOT_S = 300
CREATES = 10
SETTLE_S = 900


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[UpCloud]:
    cloud = UpCloud(tmp_path / "cloud")
    with closing(cloud):
        yield cloud
    remove_host(cloud, "host-1")


def remove_host(cloud: UpCloud, name: str) -> None:
    """Take away what a killed cloud leaves in the kernel: wiring, filter tables, a private libvirtd."""
    host = cloud.data_dir / "hosts" / name / "network"
    HostNetwork(host, name, lambda *_: (404, {}, b"")).remove()
    PrivateLibvirtd(cloud.data_dir / "libvirt" / name, name, own_network=False).remove()


def running_guests(cloud: UpCloud) -> list[str]:
    """Server ids with a QEMU process of this cloud."""
    found = subprocess.run(
        ["pgrep", "-af", "qemu-system"], capture_output=True, text=True, check=False
    )
    place = f"{cloud.data_dir}/"
    lines = [line for line in found.stdout.splitlines() if place in line]
    return sorted(s for line in lines for s in cloud.servers() if s in line)


def residue(cloud: UpCloud) -> list[str]:
    """What is left of guests on the host: taps, instance folders, network namespaces of this cloud."""
    host = cloud.data_dir / "hosts" / "host-1"
    return [str(p) for part in ("instances", "network/ports") for p in (host / part).glob("*")]


def test_a_guest_boots_obeys_and_leaves_nothing(cloud: UpCloud, tiny_image: Path) -> None:
    cloud.start()
    network = cloud.demo_net()
    server_id = cloud.boot(cloud.upload(tiny_image), "first", network, config_drive=True)
    eventually(lambda: all_active(cloud, 1), BOOT_S)
    eventually(lambda: "BOOT-OK first" in cloud.console(server_id), BOOT_S)
    assert "md=configdrive" in cloud.console(server_id)

    for action, status in (("os-stop", "SHUTOFF"), ("os-start", "ACTIVE"), ("pause", "PAUSED")):
        answer = cloud.act(server_id, {action: None})
        assert answer.status_code == 202, answer.text
        eventually(lambda s=status: cloud.servers()[server_id]["status"] == s, BOOT_S)

    other = cloud.as_("duranova-alt")
    assert other.get(f"/compute/v2.1/servers/{server_id}").status_code == 404
    assert other.get("/compute/v2.1/servers").json()["servers"] == []

    assert cloud.as_().delete(f"/compute/v2.1/servers/{server_id}").status_code == 204
    eventually(lambda: cloud.servers() == {}, BOOT_S)
    check_record(cloud, 0)
    assert residue(cloud) == []


@pytest.mark.timeout(1800)
def test_ten_guests_survive_kill_9_of_everything(cloud: UpCloud, tiny_image: Path) -> None:
    cloud.start()
    image, network = cloud.upload(tiny_image), cloud.demo_net()
    accepted = {cloud.boot(image, f"s{n}", network) for n in range(CREATES)}
    eventually(lambda: any(s["status"] == "ACTIVE" for s in cloud.servers().values()), BOOT_S)
    assert cloud.kill_everything() > 0

    cloud.start()
    eventually(lambda: all_active(cloud, CREATES), SETTLE_S)
    eventually(lambda: running_guests(cloud) == sorted(accepted), BOOT_S)
    check_record(cloud, CREATES)

    for server_id in accepted:
        assert cloud.as_().delete(f"/compute/v2.1/servers/{server_id}").status_code == 204
    eventually(lambda: cloud.servers() == {}, BOOT_S)
    check_record(cloud, 0)
    assert running_guests(cloud) == []
    assert residue(cloud) == []
