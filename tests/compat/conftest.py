"""The real `openstack` command against the API served on a free port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sqlalchemy import Engine
from sqlmodel import select

from api.app import build_app
from api.context import Cloud
from api.tokens import Tokens
from db.bootstrap import bootstrap
from db.flavors import Flavor
from db.hosts import Host
from db.identity import Project
from db.images import Image
from db.network import Network, Subnet
from db.session import now, transaction
from runtime.settings import Settings

PASSWORDS = {"admin": "admin-secret", "demo": "demo-secret", "alt": "alt-secret"}


@pytest.fixture
def url(cloud: Cloud, settings: Settings) -> Iterator[str]:
    """A served cloud with its first users; the address of its identity service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections from now on
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = settings.model_copy(update={"public_url": address})
        with transaction(cloud.engine) as session:
            bootstrap(session, PASSWORDS)
        app = build_app(
            Cloud(settings, cloud.engine, Tokens(settings), cloud.launcher, cloud.sealer)
        )
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"{address}/identity/v3"
        server.should_exit = True
        thread.join()


# The command's own main, once per line of arguments: loading its plug-ins costs seconds, once is enough.
DRIVER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from openstackclient.shell import main

answers = sys.stdout
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(json.loads(line))
        except SystemExit as left:
            status = left.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


def signed_in(url: str, user: str, password: str | None = None) -> dict[str, str]:
    """The variables of a user of the identity service at this address, in the project of the same name."""
    return {
        "OS_AUTH_URL": url,
        "OS_USERNAME": user,
        "OS_PASSWORD": password or PASSWORDS[user],
        "OS_PROJECT_NAME": user,
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_IDENTITY_API_VERSION": "3",
    }


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What a command of the tests runs in: ours, with these variables as the only ones of OpenStack."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("OS_")}
    return {**ours, **variables, "NO_PROXY": "127.0.0.1"}


class Command:
    """The `openstack` command with these variables set."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env=environment(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, *words: str | Path) -> str:
        """What the command prints; it must succeed."""
        status, out, err = self.run(*words)
        assert status == 0, err
        return out

    def shows(self, *words: str | Path) -> Any:
        """What a command with a result prints, as JSON."""
        return json.loads(self(*words, "-f", "json"))

    def fails(self, *words: str | Path) -> str:
        """What the command complains about; it must not succeed."""
        status, out, err = self.run(*words)
        assert status != 0, out
        return err

    def run(self, *words: str | Path) -> tuple[int, str, str]:
        """Exit code, output and complaints."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        status, out, err = json.loads(self.process.stdout.readline())
        return status, out, err


@pytest.fixture
def as_user(url: str) -> Iterator[Callable[[str], Command]]:
    """Makes the command for a user."""
    with ExitStack() as started:

        def start(user: str) -> Command:
            command = Command(signed_in(url, user))
            started.enter_context(command.process)  # waits for it, once its input is closed
            return command

        yield start


@pytest.fixture
def demo(as_user: Callable[[str], Command], engine: Engine) -> Command:
    """The command as ``demo``, in a cloud with a flavor, an image, a network and a host."""
    with transaction(engine) as session:
        project = session.exec(select(Project).where(Project.name == "demo")).one().id
        net = Network(project_id=project, name="blue", segment=1001)
        session.add_all(
            [
                Flavor(flavor_id="1", name="m1.tiny", vcpus=1, ram_mb=64, disk_gb=1),
                Image(
                    name="cirros", project_id=project, status="active", visibility="private",
                    disk_format="qcow2", container_format="bare", size=1, sha512="ab" * 64,
                ),
                Host(
                    name="node-1", uuid="u", service_id="s", hypervisor_hostname="node-1",
                    reported_at=now(),
                ),
                net,
            ]
        )  # fmt: skip
        session.flush()
        session.add(
            Subnet(
                network_id=net.id, project_id=project, cidr="10.0.1.0/24", gateway_ip="10.0.1.1",
                allocation_pools=[{"start": "10.0.1.10", "end": "10.0.1.99"}],
            )
        )  # fmt: skip
    return as_user("demo")
