"""The whole cloud in one process: a served API, the control worker and fake hosts over a real Temporal
server and a real SQLite file. What a test needs when every part must be the real one but the hypervisor.

    async with running_stack(tmp_path, address, hosts=2) as stack:
        server_id = await stack.boot("one")
        await stack.until(server_id, "ACTIVE")
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine
from temporalio.client import Client

from cli.serve import api_server, listen
from db import tables
from db.bootstrap import bootstrap
from db.flavors import ensure_default_flavors
from db.identity import DEFAULT_DOMAIN, Project
from db.identity import find as find_identity
from db.network import ensure_demo_network
from db.session import open_engine, transaction
from domain.ids import server_workflow_id
from runtime.sealing import host_key
from runtime.settings import Settings
from runtime.temporal import connect
from virt.driver import Driver
from virt.fake import FakeDriver
from workers.control import SANDBOX, control_worker
from workers.host import HostPlan, host_worker

SECRET = "stack-secret-" + "s" * 40
USERS = {"admin": "admin", "member": "demo", "alt": "alt"}
"""What a test calls a caller → the user that ``bootstrap`` made."""
NEWEST = {"OpenStack-API-Version": "compute 2.96"}
WITHIN_S = 60.0
IMAGE = b"not a bootable image, which the fake driver does not mind"


@dataclass
class Stack:
    """A running cloud."""

    client: httpx.AsyncClient
    """Without a token: give ``headers=await stack.headers("member")``."""
    temporal: Client
    engine: Engine
    settings: Settings
    drivers: dict[str, FakeDriver] = field(default_factory=dict)
    """By host: ``host-1`` and so on; to break (``drivers["host-1"].faults``) and to look at."""
    _tokens: dict[str, str] = field(default_factory=dict)
    _image_id: str | None = None

    async def token(self, who: str) -> str:
        """A token of ``admin``, ``member`` or ``alt``, got by password, each in its own project."""
        if who not in self._tokens:
            user, domain = USERS[who], {"id": "default"}
            given = {"name": user, "domain": domain, "password": password(user)}
            body = {
                "identity": {"methods": ["password"], "password": {"user": given}},
                "scope": {"project": {"name": user, "domain": domain}},
            }
            answer = await self.client.post("/identity/v3/auth/tokens", json={"auth": body})
            assert answer.status_code == 201, answer.text
            self._tokens[who] = answer.headers["X-Subject-Token"]
        return self._tokens[who]

    async def headers(self, who: str = "member") -> dict[str, str]:
        """What a client of this caller sends, at the newest microversion."""
        return {"X-Auth-Token": await self.token(who), **NEWEST}

    async def image(self) -> str:
        """The id of a public image, uploaded when first asked for."""
        if self._image_id is None:
            headers = await self.headers("admin")
            body = {"name": "stack", "disk_format": "raw", "container_format": "bare"}
            made = await self.client.post(
                "/image/v2/images", json={**body, "visibility": "public"}, headers=headers
            )
            assert made.status_code == 201, made.text
            image_id = str(made.json()["id"])
            put = await self.client.put(
                f"/image/v2/images/{image_id}/file",
                content=IMAGE,
                headers={**headers, "Content-Type": "application/octet-stream"},
            )
            assert put.status_code == 204, put.text
            self._image_id = image_id
        return self._image_id

    async def boot(
        self, name: str, who: str = "member", headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        """Ask for a server on the demo network; ``more`` goes into its body."""
        body = {"name": name, "imageRef": await self.image(), "flavorRef": "tiny"} | more
        body.setdefault("networks", [{"uuid": await self.network()}])
        answer = await self.client.post(
            "/compute/v2.1/servers",
            json={"server": body},
            headers={**await self.headers(who), **(headers or {})},
        )
        assert answer.status_code == 202, answer.text
        return answer

    async def network(self) -> str:
        """The id of the network every cloud starts with."""
        answer = await self.client.get(
            "/network/v2.0/networks", params={"name": "demo-net"}, headers=await self.headers()
        )
        return str(answer.json()["networks"][0]["id"])

    async def show(self, server_id: str, who: str = "admin") -> dict[str, Any]:
        """A server as the API shows it; ``{"status": "DELETED"}`` when it is gone."""
        answer = await self.client.get(
            f"/compute/v2.1/servers/{server_id}", headers=await self.headers(who)
        )
        if answer.status_code == 404:
            return {"status": "DELETED"}
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()["server"]
        return shown

    async def until(self, server_id: str, status: str) -> dict[str, Any]:
        """The server, as soon as it has this status and its workflow has closed."""
        async with asyncio.timeout(WITHIN_S):
            while (shown := await self.show(server_id))["status"] != status:  # noqa: ASYNC110  # only polls
                await asyncio.sleep(0.05)
            handle = self.temporal.get_workflow_handle(server_workflow_id(server_id))
            await handle.result()
        return shown


def password(user: str) -> str:
    """The password of a user of the stack."""
    return "pw-" + hashlib.sha256(user.encode()).hexdigest()[:16]


@asynccontextmanager
async def running_stack(
    directory: Path, address: str, hosts: int = 1, **changes: Any
) -> AsyncIterator[Stack]:
    """A fresh cloud in this directory, on the Temporal server at this address (one stack at a time), with
    these changes to its settings."""
    async with AsyncExitStack() as ending:
        listening = listen("127.0.0.1", 0)
        ending.callback(listening.close)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = Settings(
            data_dir=directory,
            database_url=f"sqlite:///{directory}/duranova.db",
            temporal_address=address,
            public_url=url,
            control_url=url,
            secret_key=SECRET,
            **changes,
        )
        engine = await asyncio.to_thread(_database, settings)
        ending.callback(engine.dispose)
        temporal = await connect(address, "default")
        serving = api_server(temporal, engine, settings, listening, eager=True)
        await ending.enter_async_context(serving)
        client = await ending.enter_async_context(httpx.AsyncClient(base_url=url, timeout=WITHIN_S))
        stack = Stack(client, temporal, engine, settings)
        for name in (f"host-{n}" for n in range(1, hosts + 1)):
            plan = HostPlan(name, "fake", directory / "hosts" / name, host_key(SECRET, name))
            driver = await ending.enter_async_context(host_worker(temporal, plan, settings))
            stack.drivers[name] = _fake(driver)
        await ending.enter_async_context(control_worker(temporal, engine, settings, SANDBOX))
        yield stack
    # Runs that were terminated, or that a server has forgotten, are in nobody's cache but the garbage: it is
    # emptied here, not in the middle of whatever comes next.
    gc.collect()


def _fake(driver: Driver) -> FakeDriver:
    assert isinstance(driver, FakeDriver)
    return driver


def _database(settings: Settings) -> Engine:
    engine = open_engine(settings.database_url)
    tables.metadata.create_all(engine)
    with transaction(engine) as session:
        bootstrap(session, {user: password(user) for user in USERS.values()})
        ensure_default_flavors(session)
        admin = find_identity(session, Project, "admin", DEFAULT_DOMAIN)
        assert admin is not None
        ensure_demo_network(session, admin.id)
    return engine
