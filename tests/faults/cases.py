"""Questions and requests that the fault tests repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from sqlmodel import select

from db.hosts import Claim
from db.network.tables import Port
from db.operations import Operation
from db.session import reading
from domain.states import LIVE_OPERATION_STATES
from tests.stack import Stack

WITHIN_S = 60.0
ACTIONS: dict[str, dict[str, Any]] = {
    "stop": {"os-stop": None},
    "start": {"os-start": None},
    "pause": {"pause": None},
    "unpause": {"unpause": None},
    "suspend": {"suspend": None},
    "resume": {"resume": None},
    "reboot_soft": {"reboot": {"type": "SOFT"}},
    "reboot_hard": {"reboot": {"type": "HARD"}},
}


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds."""
    async with asyncio.timeout(WITHIN_S):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  # only polls
            await asyncio.sleep(0.02)


async def booted(stack: Stack, name: str, status: str = "ACTIVE", **more: Any) -> str:
    """The id of a new server that has come to this status."""
    server_id: str = (await stack.boot(name, **more)).json()["server"]["id"]
    await stack.until(server_id, status)
    return server_id


async def act(stack: Stack, server_id: str, lifecycle: str) -> httpx.Response:
    """Ask for a power operation."""
    url = f"/compute/v2.1/servers/{server_id}/action"
    headers = await stack.headers("admin")
    return await stack.client.post(url, json=ACTIONS[lifecycle], headers=headers)


async def delete(stack: Stack, server_id: str) -> int:
    """Ask for the end of a server; returns the answer's status."""
    headers = await stack.headers("admin")
    answer = await stack.client.delete(f"/compute/v2.1/servers/{server_id}", headers=headers)
    return answer.status_code


def operations(stack: Stack, server_id: str) -> list[Operation]:
    """A server's operations, oldest first."""
    with reading(stack.engine) as session:
        query = select(Operation).where(Operation.server_id == server_id)
        return sorted(session.exec(query), key=lambda o: o.created_at)


def residue(stack: Stack, server_id: str) -> list[str]:
    """What the record and the hosts still hold for a server, its row and history excepted."""
    with reading(stack.engine) as session:
        claims = session.exec(select(Claim).where(Claim.server_id == server_id))
        ports = session.exec(select(Port).where(Port.device_id == server_id))
        query = select(Operation).where(Operation.server_id == server_id)
        live = [o for o in session.exec(query) if o.state in LIVE_OPERATION_STATES]
        found = [f"claim on {c.host}" for c in claims] + [f"port {p.id}" for p in ports]
        found += [f"{o.lifecycle} is {o.state}" for o in live]
    for name, driver in stack.drivers.items():
        found += [f"{name}: {part}" for part in driver.residue(server_id)]
    return found
