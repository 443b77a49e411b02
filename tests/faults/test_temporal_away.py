"""Temporal that is down, or comes back with an older copy of its database."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from sqlmodel import select

from activities.control.records import Records
from activities.control.sweep import GRACE, Sweep
from db.operations import Operation
from db.session import reading, transaction
from domain.ids import server_workflow_id
from runtime.devserver import command, free_port, wait_ready
from tests.faults.cases import act, booted, delete, operations, residue, until
from tests.stack import Stack, running_stack
from workers import standing

pytestmark = pytest.mark.temporal


class Server:
    """A Temporal server with a file, to be killed and started again on the same port."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "temporal.db"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        await asyncio.to_thread(self._spawn)
        await wait_ready(self.address)

    def _spawn(self) -> None:
        quiet, line = subprocess.DEVNULL, command(self._port, self.file, None)
        self._process = subprocess.Popen(line, stdout=quiet, stderr=quiet)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None

    def lose(self) -> None:
        """Remove the database."""
        for file in self.file.parent.glob("temporal.db*"):
            file.unlink()

    def restore(self, older: Path) -> None:
        """Put a copy in the place of the database and its write-ahead log."""
        self.lose()
        shutil.copy(older / self.file.name, self.file)


@asynccontextmanager
async def cloud(directory: Path) -> AsyncIterator[tuple[Stack, Server]]:
    server = Server(directory)
    async with AsyncExitStack() as ending:
        ending.callback(server.kill)
        await server.start()
        stack = await ending.enter_async_context(running_stack(directory, server.address, hosts=2))
        yield stack, server


def accepted(stack: Stack) -> list[Operation]:
    """Operations without a workflow yet."""
    with reading(stack.engine) as session:
        return list(session.exec(select(Operation).where(Operation.state == "accepted")))


def age(stack: Stack, *operation_ids: str) -> None:
    """Let these operations have been accepted longer ago than the API takes to start them."""
    with transaction(stack.engine) as session:
        for operation_id in operation_ids:
            session.get_one(Operation, operation_id).created_at -= 2 * GRACE


async def swept(stack: Stack, *operation_ids: str) -> None:
    """Run the sweep as its schedule would, on operations that are old enough for it."""
    age(stack, *operation_ids)
    records = Records(stack.engine, stack.settings)
    await Sweep(stack.temporal, stack.engine, records).run()


async def test_while_temporal_is_down_reads_work_and_writes_are_accepted_and_carried_out_later(
    tmp_path: Path,
) -> None:
    async with cloud(tmp_path) as (stack, temporal):
        server_id = await booted(stack, "before")
        temporal.kill()

        assert (await stack.show(server_id))["status"] == "ACTIVE"
        ready = await stack.client.get("/readyz")
        assert (ready.status_code, ready.json()["missing"]) == (
            503,
            {"temporal": "does not answer"},
        )
        began = time.monotonic()
        stop, boot = await asyncio.gather(
            act(stack, server_id, "stop"), stack.boot("meanwhile", min_count=4)
        )
        assert (stop.status_code, boot.status_code) == (202, 202)
        assert time.monotonic() - began < 15  # however many servers were asked for
        new = {o.server_id for o in accepted(stack)} - {server_id}
        assert len(new) == 4
        assert boot.json()["server"]["id"] in new
        assert (
            await act(stack, server_id, "pause")
        ).status_code == 409  # the wish is a lock already

        await temporal.start()
        await swept(stack, *(o.id for o in accepted(stack)))
        await stack.until(server_id, "SHUTOFF")
        for new_id in new:
            await stack.until(new_id, "ACTIVE")


async def test_operations_under_way_go_on_when_temporal_was_killed_and_comes_back(
    tmp_path: Path,
) -> None:
    async with cloud(tmp_path) as (stack, temporal):
        [server_id] = await held_at_disk(stack, "one")
        temporal.kill()
        let_go(stack)
        await temporal.start()
        await stack.until(server_id, "ACTIVE")
        [create] = operations(stack, server_id)
        assert (create.state, create.attempt) == ("succeeded", 1)


async def test_after_an_older_copy_of_temporals_database_the_record_still_counts(
    tmp_path: Path,
) -> None:
    """What the copy does not know is started again; what it wrongly believes to be under way ends without
    an effect on a server that has moved on."""
    async with cloud(tmp_path) as (stack, temporal):
        kept = await booted(stack, "kept")
        building = await held_at_disk(stack, "built", "deleted")
        await asyncio.to_thread(_copy, temporal, tmp_path / "older")

        let_go(stack)
        built, deleted = building
        for server_id in building:
            await stack.until(server_id, "ACTIVE")
        assert await delete(stack, deleted) == 204
        await stack.until(deleted, "DELETED")
        newer = await booted(stack, "newer")
        stops = [driver.faults.hold("stop") for driver in stack.drivers.values()]
        assert (await act(stack, kept, "stop")).status_code == 202
        await until(lambda: any(h.reached.is_set() for h in stops))

        temporal.kill()
        temporal.restore(tmp_path / "older")
        let_go(stack)
        await temporal.start()
        await swept(stack, operations(stack, kept)[-1].id)

        await stack.until(kept, "SHUTOFF")
        for server_id in building:  # their old builds run to an end that the record does not take
            await stack.temporal.get_workflow_handle(server_workflow_id(server_id)).result()
        states = {i: (await stack.show(i))["status"] for i in (built, newer, deleted)}
        assert states == {built: "ACTIVE", newer: "ACTIVE", deleted: "DELETED"}
        assert residue(stack, deleted) == []
        assert all(o.finished_at for i in (kept, *building, newer) for o in operations(stack, i))
        await check_deletable(stack, built, newer, kept)


async def test_schedules_are_made_again_when_temporals_database_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "LOOK_EVERY_S", 0.5)
    async with (
        cloud(tmp_path) as (stack, temporal),
        standing.standing_work(stack.temporal, stack.settings),
    ):
        server_id = await booted(stack, "kept")
        temporal.kill()
        assert (await act(stack, server_id, "stop")).status_code == 202
        temporal.lose()
        await temporal.start()
        age(stack, *(o.id for o in accepted(stack)))
        await stack.until(server_id, "SHUTOFF")  # by a sweep that nobody here asked for


async def held_at_disk(stack: Stack, *names: str) -> list[str]:
    """New servers; hosts are at work on their disks until ``let_go``."""
    drivers = stack.drivers.values()
    before = sum(list(d.faults.reached).count("disk") for d in drivers)
    for driver in drivers:
        driver.faults.hold("disk")
    server_ids = [str((await stack.boot(name)).json()["server"]["id"]) for name in names]
    wanted = before + len(names)
    await until(lambda: sum(list(d.faults.reached).count("disk") for d in drivers) == wanted)
    return server_ids


def let_go(stack: Stack) -> None:
    for driver in stack.drivers.values():
        driver.faults.clear()


async def check_deletable(stack: Stack, *server_ids: str) -> None:
    for server_id in server_ids:
        assert await delete(stack, server_id) == 204
        await stack.until(server_id, "DELETED")
        assert residue(stack, server_id) == []


def _copy(temporal: Server, directory: Path) -> None:
    """A backup of a running server."""
    directory.mkdir()
    source = sqlite3.connect(temporal.file)
    target = sqlite3.connect(directory / temporal.file.name)
    with target:
        source.backup(target)
    source.close()
    target.close()
