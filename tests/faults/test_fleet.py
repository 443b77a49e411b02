"""Many fake hosts in one process: what a host adds to it, and that each is still a host of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from cli.children import Child
from cli.hypervisors import Hypervisor
from db.hosts import Host
from db.session import reading
from tests.faults.cases import act, delete, until
from tests.stack import Stack, running_stack
from workers import host as host_module

pytestmark = pytest.mark.temporal
HOSTS = tuple(f"host-{n}" for n in range(1, 61))
SERVERS = 6


@asynccontextmanager
async def fleet(stack: Stack) -> AsyncIterator[Child]:
    """One process with all the hosts, started as ``duranova up`` does."""
    directory = stack.settings.data_dir
    words = [word for name in HOSTS for word in ("--name", name)]
    command = [sys.executable, "-m", "cli.main", "host", "--driver", "fake", *words]
    child = Child(
        "fleet",
        [*command, "--state-dir", str(directory / "hosts")],
        directory / "fleet.log",
        Hypervisor("fleet", HOSTS, ()).environment(stack.settings),
        says_ready=True,
    )
    await child.start()
    try:
        yield child
    finally:
        await child.stop()


def count(child: Child, what: str) -> int:
    """How many threads (``task``) or open files (``fd``) the process has."""
    return len(list(Path(f"/proc/{child.pid}/{what}").iterdir()))


def count_sockets(child: Child) -> int:
    links = Path(f"/proc/{child.pid}/fd").iterdir()
    return sum(1 for link in links if "socket:" in str(link.readlink()))


def epochs(stack: Stack) -> dict[str, str]:
    """Host → the start of its worker that reported last."""
    with reading(stack.engine) as session:
        return {host.name: host.epoch for host in session.exec(select(Host))}


async def test_sixty_hosts_in_a_process_share_its_threads_and_connections(
    address: str, tmp_path: Path
) -> None:
    async with running_stack(tmp_path, address, hosts=0) as stack, fleet(stack) as child:
        assert set(epochs(stack)) == set(HOSTS)
        await until(
            lambda: count(child, "task") < len(HOSTS) / 2
        )  # those of the start end by themselves
        assert count_sockets(child) < len(HOSTS) / 2
        assert count(child, "fd") < len(HOSTS) * 2  # a lock for each
        booted = [await stack.boot(f"s-{n}") for n in range(SERVERS)]
        ids = [answer.json()["server"]["id"] for answer in booted]
        shown = [await stack.until(server_id, "ACTIVE") for server_id in ids]
        assert len({server["OS-EXT-SRV-ATTR:host"] for server in shown}) == SERVERS
        assert (await act(stack, ids[0], "stop")).status_code == 202
        await stack.until(ids[0], "SHUTOFF")
        before = epochs(stack)
        await child.kill()
        await child.start()
        assert all(epochs(stack)[host] != before[host] for host in HOSTS)
        for server_id in ids:
            assert await delete(stack, server_id) == 204
        await asyncio.gather(*(stack.until(server_id, "DELETED") for server_id in ids))
        await until(lambda: not list((tmp_path / "hosts").glob("host-*/guests/*.json")))
        await until(
            lambda: count(child, "task") < len(HOSTS) / 2
        )  # some end only after ten idle seconds


@pytest.mark.parametrize(("hosts", "polls"), [(1, 5), (20, 5), (60, 1), (1000, 1)])
async def test_a_process_of_many_hosts_holds_few_polls_open(
    stack: Stack, hosts: int, polls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(host_module, "Worker", lambda *_client, **given: made.append(given))
    monkeypatch.setattr(host_module, "implemented", lambda *_: [])
    async with host_module._process(stack.temporal, stack.settings, hosts) as process:
        host_module._worker(process, "host-1", None)  # type: ignore[arg-type]  # not looked at
    assert [given["activity_task_poller_behavior"].maximum for given in made] == [polls]
