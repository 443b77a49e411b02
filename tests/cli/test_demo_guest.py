"""What the demo knows of images: their size, and the line that says that a guest is up."""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path

import pytest

from cli.demo import guest
from cli.demo.client import CommandFailed, OpenStack
from domain.errors import DuranovaError


@pytest.mark.parametrize(("size", "disk_gb"), [("64M", 1), ("1G", 1), ("2500M", 3)])
def test_flavor_is_large_enough_for_the_image(size: str, disk_gb: int, tmp_path: Path) -> None:
    file = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", file, size], check=True)
    image = guest.given_image(file)
    assert (image.format, image.disk_gb) == ("qcow2", disk_gb)


def test_image_of_another_kind_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", file, "64M"], check=True)
    with pytest.raises(DuranovaError, match="vmdk; convert it to qcow2"):
        guest.given_image(file)


@pytest.mark.parametrize(
    "line",
    [
        "[   9.1] BOOT-OK web 10.0.0.5 md=http up=6.3: up",
        "Cloud-init v. 22.4.2 finished at Sat, 22 Nov 2026 19:00:00 +0000. Up 104.2 seconds",
        "debian-12 login: ",
    ],
)
def test_guest_of_any_kind_is_seen_to_be_up(line: str, tmp_path: Path) -> None:
    up = guest.empty_image(tmp_path / "disk").is_up
    found = up.search(f"SeaBIOS\nLoading\n{line}\n")
    assert found
    assert found[0] == line.rstrip("\n")
    assert not up.search("SeaBIOS\nCloud-init v. 22.4.2 running 'init'\n")


def test_network_of_the_demo_overlaps_no_route_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    routes = '[{"dst": "default"}, {"dst": "10.87.0.0/23"}, {"dst": "10.87.2.7"}]'
    answer = subprocess.CompletedProcess([], 0, routes, "")
    monkeypatch.setattr("subprocess.run", lambda *_words, **_options: answer)
    assert ipaddress.ip_network(guest.free_network()) == ipaddress.ip_network("10.87.3.0/24")


def test_ssh_that_never_gets_in_says_why(tmp_path: Path) -> None:
    with pytest.raises(DuranovaError, match="ssh nobody@"):
        guest.ssh(tmp_path / "no-key", "nobody", "127.0.0.1", "true", within_s=0)


@pytest.mark.timeout(120)
def test_client_refuses_words_it_could_not_pass_on_and_tells_complaints(tmp_path: Path) -> None:
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text(
        '{"clouds": {"here": {"auth_type": "none", "endpoint": "http://127.0.0.1:9"}}}'
    )
    client = OpenStack(clouds, "here", tmp_path / "log")
    try:
        with pytest.raises(CommandFailed, match="without quotes"):
            client.show("image", "show", "my image")
        with pytest.raises(CommandFailed, match="usage: server delete"):
            client.do("server", "delete", "--no-such-option")
        assert client.show("module", "list")
    finally:
        client.close()
