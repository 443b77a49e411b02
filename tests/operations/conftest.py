"""A whole cloud with six fake hosts, so that six builds can be broken side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.guest import STAGES
from tests.stack import WITHIN_S, Stack, running_stack
from tests.temporal_server import temporal_server
from virt.fake import FakeDriver

TRIES = 3
"""Attempts of one spawn (``workflows.policies``)."""
HOST_OF = {stage: f"host-{n}" for n, stage in enumerate(STAGES, 1)}
HOLD = {"X-Duranova-Hold-On-Failure": "true"}


@dataclass
class Desk:
    """What a test does with operations, through the API."""

    stack: Stack

    def driver(self, stage: str) -> FakeDriver:
        """The host on which the build that breaks at this stage runs."""
        return self.stack.drivers[HOST_OF[stage]]

    async def build(self, stage: str, **headers: str) -> str:
        """Ask for a server on this stage's host; returns its id."""
        where = f"nova:{HOST_OF[stage]}"
        name = f"breaks-at-{stage.replace('_', '-')}"
        answer = await self.stack.boot(name, "admin", headers, availability_zone=where)
        server_id: str = answer.json()["server"]["id"]
        return server_id

    async def call(
        self, method: str, path: str, who: str = "admin", **given: Any
    ) -> httpx.Response:
        headers = {**await self.stack.headers(who), **given.pop("headers", {})}
        url = f"/operations/v1{path}"
        return await self.stack.client.request(method, url, headers=headers, **given)

    async def newest(self, server_id: str) -> dict[str, Any]:
        """The server's newest operation, in full."""
        listed = await self.call("GET", "/operations", params={"server_id": server_id})
        shown = await self.call("GET", f"/operations/{listed.json()['operations'][0]['id']}")
        operation: dict[str, Any] = shown.json()
        return operation

    async def until(self, server_id: str, state: str) -> dict[str, Any]:
        """The server's newest operation, once it is in this state."""
        async with asyncio.timeout(WITHIN_S):
            while (found := await self.newest(server_id))["state"] != state:  # noqa: ASYNC110  # only polls
                await asyncio.sleep(0.05)
        return found

    async def say(self, operation: dict[str, Any], verb: str, **given: Any) -> httpx.Response:
        return await self.call("POST", f"/operations/{operation['id']}/{verb}", **given)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@pytest.fixture
async def desk(address: str, tmp_path: Path) -> AsyncIterator[Desk]:
    async with running_stack(tmp_path, address, hosts=len(STAGES)) as stack:
        yield Desk(stack)


def taken(operation: dict[str, Any]) -> list[tuple[str, str]]:
    """(stage, result) of the stages an operation has recorded, in order."""
    return [(s["name"], s["result"]) for s in operation["steps"] if s["name"] in STAGES]
