"""A small cloud for tests of servers: flavors, images, networks, a keypair, two hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event

from db.flavors import Flavor
from db.hosts import Host
from db.images import Image
from db.keypairs import Keypair
from db.network import Network, Subnet
from db.servers import Server, ServerFault
from db.session import now, transaction

GIB = 1024**3
NET = "11111111-0000-4000-8000-000000000001"
OTHER_NET = "11111111-0000-4000-8000-000000000002"
ALT_NET = "11111111-0000-4000-8000-000000000003"
IMAGE = "22222222-0000-4000-8000-000000000001"
BIG_IMAGE = "22222222-0000-4000-8000-000000000002"
QUEUED_IMAGE = "22222222-0000-4000-8000-000000000003"
ALT_IMAGE = "22222222-0000-4000-8000-000000000004"
SERVERS = "/compute/v2.1/servers"


def at(version: str = "2.1", who: str = "member") -> dict[str, str]:
    """Headers: this microversion, asked by this caller."""
    return {"X-Auth-Token": who, "OpenStack-API-Version": f"compute {version}"}


@dataclass
class ServerWorld:
    """Shorthands for tests that make servers over HTTP and move them by hand."""

    client: TestClient
    engine: Engine

    def post(
        self, version: str = "2.1", who: str = "member", hints: Any = None, **fields: Any
    ) -> httpx.Response:
        """POST /servers with sensible defaults; a field given as None is left out."""
        body = {"name": "web", "flavorRef": "small", "imageRef": IMAGE} | fields
        if version >= "2.37" and "networks" not in fields:
            body["networks"] = [{"uuid": NET}]
        sent = {k: v for k, v in body.items() if v is not None}
        request = {"server": sent} | ({"os:scheduler_hints": hints} if hints else {})
        return self.client.post(SERVERS, json=request, headers=at(version, who))

    def create(self, version: str = "2.1", who: str = "member", **fields: Any) -> str:
        """The id of a new server."""
        answer = self.post(version, who, **fields)
        assert answer.status_code == 202, answer.text
        made: str = answer.json()["server"]["id"]
        return made

    def show(self, server_id: str, version: str = "2.1", who: str = "member") -> dict[str, Any]:
        """The server as this caller sees it."""
        answer = self.client.get(f"{SERVERS}/{server_id}", headers=at(version, who))
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()["server"]
        return shown

    def names(self, query: str = "", version: str = "2.1", who: str = "member") -> list[str]:
        """Names in the short list for this query string."""
        answer = self.client.get(f"{SERVERS}?{query}", headers=at(version, who))
        assert answer.status_code == 200, answer.text
        return [server["name"] for server in answer.json()["servers"]]

    def act(
        self,
        server_id: str,
        action: str,
        value: Any = None,
        version: str = "2.1",
        who: str = "member",
    ) -> httpx.Response:
        """POST one action."""
        path = f"{SERVERS}/{server_id}/action"
        return self.client.post(path, json={action: value}, headers=at(version, who))

    def put(self, server_id: str, **columns: Any) -> None:
        """Write columns of the row, as workflows would."""
        with transaction(self.engine) as session:
            server = session.get(Server, server_id)
            assert server is not None
            for name, value in columns.items():
                setattr(server, name, value)
            session.add(server)

    def activate(self, server_id: str, host: str = "node-1", **columns: Any) -> None:
        """As if it had been built on this host."""
        running = {"vm_state": "active", "task_state": None, "power_state": 1, "host": host}
        self.put(server_id, **(running | {"launched_at": now()} | columns))

    def bury(self, server_id: str, when: datetime | None = None) -> None:
        """As if its delete had ended."""
        gone = when or now()
        self.put(
            server_id, vm_state="deleted", deleted_at=gone, terminated_at=gone, updated_at=gone
        )

    def fail(self, server_id: str, message: str, details: str | None = None) -> None:
        """As if its build had failed."""
        self.put(server_id, vm_state="error", task_state=None)
        with transaction(self.engine) as session:
            session.add(ServerFault(server_id=server_id, message=message, details=details))


@pytest.fixture
def world(client: TestClient, engine: Engine) -> ServerWorld:
    with transaction(engine) as session:
        session.add_all([*_flavors(), *_images(), *_hosts(), *_networks()])
        session.flush()
        session.add_all(_subnets())
        session.add(
            Keypair(
                user_id="user-member", name="mine", public_key="ssh-ed25519 AAAA", fingerprint="f"
            )
        )
    return ServerWorld(client, engine)


def _flavors() -> list[Flavor]:
    return [
        Flavor(
            flavor_id="small", name="m1.small", vcpus=1, ram_mb=256, disk_gb=2,
            extra_specs={"hw:cpu_policy": "shared"},
        ),
        Flavor(flavor_id="diskless", name="diskless", vcpus=1, ram_mb=512, disk_gb=0),
        Flavor(
            flavor_id="rich", name="rich", vcpus=2, ram_mb=512, disk_gb=10, ephemeral_gb=5, swap_mb=512
        ),
        Flavor(flavor_id="secret", name="secret", vcpus=1, ram_mb=64, disk_gb=1, is_public=False),
        Flavor(flavor_id="off", name="off", vcpus=1, ram_mb=64, disk_gb=1, disabled=True),
    ]  # fmt: skip


def _images() -> list[Image]:
    ready: dict[str, Any] = {
        "status": "active", "disk_format": "qcow2", "container_format": "bare", "sha512": "ab" * 64,
    }  # fmt: skip
    return [
        Image(id=IMAGE, name="cirros", project_id="project-admin", visibility="public",
              size=1000, virtual_size=GIB, min_ram=128, **ready),
        Image(id=BIG_IMAGE, name="big", project_id="project-demo", visibility="private",
              size=1000, virtual_size=5 * GIB, min_ram=512, **ready),
        Image(id=QUEUED_IMAGE, name="queued", project_id="project-demo", visibility="private"),
        Image(id=ALT_IMAGE, name="alt", project_id="project-alt", visibility="private", size=1, **ready),
    ]  # fmt: skip


def _hosts() -> list[Host]:
    return [
        Host(
            name=f"node-{n}", uuid=f"uuid-{n}", service_id=f"service-{n}", reported_at=now(),
            hypervisor_hostname=f"node-{n}.cloud", availability_zone="west" if n == 2 else None,
        )
        for n in (1, 2)
    ]  # fmt: skip


def _networks() -> list[Network]:
    return [
        Network(id=NET, project_id="project-demo", name="blue", segment=1001),
        Network(id=ALT_NET, project_id="project-alt", name="red", segment=1003),
    ]


def _subnets() -> list[Subnet]:
    return [
        Subnet(
            network_id=net, project_id=f"project-{who}", cidr=f"10.0.{n}.0/24",
            gateway_ip=f"10.0.{n}.1", allocation_pools=[{"start": f"10.0.{n}.10", "end": f"10.0.{n}.200"}],
        )
        for n, (net, who) in enumerate([(NET, "demo"), (ALT_NET, "alt")], 1)
    ]  # fmt: skip


@contextmanager
def counting(engine: Engine) -> Iterator[list[str]]:
    """Collects the statements sent to the database, transaction control left out."""
    seen: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if not statement.startswith(("BEGIN", "SAVEPOINT", "RELEASE")):
            seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)
