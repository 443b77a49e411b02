"""The image service as people use it: the real `openstack` command against a real server."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat.conftest import Command


@pytest.mark.timeout(600)
def test_openstack_command_creates_shows_changes_and_deletes_images(
    as_user: Callable[[str], Command], tmp_path: Path
) -> None:
    demo = as_user("demo")
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    made = demo.shows(
        *("image", "create", "--file", disk, "--disk-format", "qcow2", "--min-ram", "96"),
        *("--property", "os_distro=debian", "--tag", "one", "tiny"),
    )
    assert made["name"] == "tiny"
    shown = demo.shows("image", "show", "tiny")
    assert (shown["status"], shown["size"]) == ("active", disk.stat().st_size)
    assert shown["checksum"] == hashlib.md5(disk.read_bytes()).hexdigest()
    assert shown["properties"]["os_distro"] == "debian"
    assert [image["Name"] for image in demo.shows("image", "list", "--tag", "one")] == ["tiny"]

    changes = ("--name", "small", "--property", "os_version=12", "--tag", "two", "--protected")
    demo("image", "set", *changes, "tiny")
    demo("image", "unset", "--tag", "one", "--property", "os_distro", "small")
    shown = demo.shows("image", "show", "small")
    assert (shown["tags"], shown["protected"]) == (["two"], True)
    assert shown["properties"]["os_version"] == "12"
    assert "os_distro" not in shown["properties"]

    demo("image", "save", "--file", tmp_path / "saved", "small")
    assert (tmp_path / "saved").read_bytes() == disk.read_bytes()
    demo.fails("image", "delete", "small")
    demo("image", "set", "--unprotected", "small")
    demo("image", "delete", "small")
    assert demo.shows("image", "list") == []


@pytest.mark.timeout(600)
def test_openstack_command_shares_images_and_explains_refusals(
    as_user: Callable[[str], Command], tmp_path: Path
) -> None:
    demo, alt, admin = (as_user(user) for user in ("demo", "alt", "admin"))
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\0" * 1024**2)
    demo("image", "create", "--file", disk, "--disk-format", "raw", "--shared", "given")
    projects = {p["Name"]: p["ID"] for p in admin.shows("project", "list")}
    image = demo.shows("image", "show", "given")["id"]
    demo("image", "add", "project", "given", projects["alt"])
    assert alt.shows("image", "list") == []
    alt("image", "set", "--accept", image)
    assert [i["Name"] for i in alt.shows("image", "list")] == ["given"]

    assert "publicize" in demo.fails("image", "set", "--public", "given")
    refusal = demo.fails("image", "create", "--file", disk, "--disk-format", "qcow2", "lie")
    assert "disk_format says qcow2" in refusal
    admin("image", "set", "--public", image)
    assert [i["Name"] for i in admin.shows("image", "list", "--public")] == ["given"]
