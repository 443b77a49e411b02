"""The image service as people use it: the real `openstack` command against a real server."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from api.app import build_app
from api.context import Cloud
from api.tokens import Tokens
from db.bootstrap import bootstrap
from db.session import transaction
from runtime.settings import Settings

PASSWORDS = {"admin": "admin-secret", "demo": "demo-secret", "alt": "alt-secret"}


@pytest.fixture
def url(cloud: Cloud, settings: Settings) -> Iterator[str]:
    """A served cloud with its first users; the address of its identity service."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = settings.model_copy(update={"public_url": address})
        with transaction(cloud.engine) as session:
            bootstrap(session, PASSWORDS)
        app = build_app(
            Cloud(settings, cloud.engine, Tokens(settings), cloud.launcher, cloud.sealer)
        )
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"{address}/identity/v3"
        server.should_exit = True
        thread.join()


class Command:
    """The `openstack` command as one user."""

    def __init__(self, url: str, user: str) -> None:
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("OS_")} | {
            "OS_AUTH_URL": url,
            "OS_USERNAME": user,
            "OS_PASSWORD": PASSWORDS[user],
            "OS_PROJECT_NAME": user,
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_IDENTITY_API_VERSION": "3",
            "NO_PROXY": "127.0.0.1",
        }

    def fails(self, *words: str | Path) -> str:
        done = self._run(words)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def __call__(self, *words: str | Path, shown: bool = True) -> Any:
        done = self._run((*words, "-f", "json") if shown else words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if shown else done.stdout

    def _run(self, words: tuple[str | Path, ...]) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("openstack")
        return subprocess.run(
            [program, *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.mark.timeout(600)
def test_openstack_command_creates_shows_changes_and_deletes_images(
    url: str, tmp_path: Path
) -> None:
    demo = Command(url, "demo")
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    made = demo(
        *("image", "create", "--file", disk, "--disk-format", "qcow2", "--min-ram", "96"),
        *("--property", "os_distro=debian", "--tag", "one", "tiny"),
    )
    assert made["name"] == "tiny"
    shown = demo("image", "show", "tiny")
    assert (shown["status"], shown["size"]) == ("active", disk.stat().st_size)
    assert shown["checksum"] == hashlib.md5(disk.read_bytes()).hexdigest()
    assert shown["properties"]["os_distro"] == "debian"
    assert [image["Name"] for image in demo("image", "list", "--tag", "one")] == ["tiny"]

    changes = ("--name", "small", "--property", "os_version=12", "--tag", "two", "--protected")
    demo("image", "set", *changes, "tiny", shown=False)
    demo("image", "unset", "--tag", "one", "--property", "os_distro", "small", shown=False)
    shown = demo("image", "show", "small")
    assert (shown["tags"], shown["protected"]) == (["two"], True)
    assert shown["properties"]["os_version"] == "12"
    assert "os_distro" not in shown["properties"]

    demo("image", "save", "--file", tmp_path / "saved", "small", shown=False)
    assert (tmp_path / "saved").read_bytes() == disk.read_bytes()
    demo.fails("image", "delete", "small")
    demo("image", "set", "--unprotected", "small", shown=False)
    demo("image", "delete", "small", shown=False)
    assert demo("image", "list") == []


@pytest.mark.timeout(600)
def test_openstack_command_shares_images_and_explains_refusals(url: str, tmp_path: Path) -> None:
    demo, alt, admin = (Command(url, user) for user in ("demo", "alt", "admin"))
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\0" * 1024**2)
    demo("image", "create", "--file", disk, "--disk-format", "raw", "--shared", "given")
    projects = {p["Name"]: p["ID"] for p in admin("project", "list")}
    image = demo("image", "show", "given")["id"]
    demo("image", "add", "project", "given", projects["alt"])
    assert alt("image", "list") == []
    alt("image", "set", "--accept", image, shown=False)
    assert [i["Name"] for i in alt("image", "list")] == ["given"]

    assert "publicize" in demo.fails("image", "set", "--public", "given")
    refusal = demo.fails("image", "create", "--file", disk, "--disk-format", "qcow2", "lie")
    assert "disk_format says qcow2" in refusal
    admin("image", "set", "--public", image, shown=False)
    assert [i["Name"] for i in admin("image", "list", "--public")] == ["given"]
