"""A host that dies while it works on an operation: the operation goes on elsewhere, or ends and says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from domain.ids import CONTROL_QUEUE, host_queue, new_id
from domain.lifecycle import LIFECYCLES
from domain.states import PowerState, VmState
from runtime.temporal import connect
from tests.world import HOSTS, Row, World, WorldControl, WorldHost
from workers.control import SANDBOX
from workers.registry import implemented
from workflows import operation
from workflows.catalog import WORKFLOWS
from workflows.contract import (
    ChangePower,
    ControlActivities,
    GuestPower,
    HostActivities,
    Ref,
    SpawnGuest,
)
from workflows.policies import POLICIES

pytestmark = pytest.mark.temporal
DYING, *PRESENT = HOSTS
SOON = timedelta(seconds=1)


class DyingHost(WorldHost):
    """Takes one task and is not heard of again; its worker has room for no other."""

    def __init__(self, world: World, host: str, over: asyncio.Event) -> None:
        super().__init__(world, host)
        self._over = over

    @activity.defn
    async def spawn_guest(self, cmd: SpawnGuest) -> GuestPower:
        await self._over.wait()
        raise RuntimeError("dead")

    @activity.defn
    async def change_power(self, cmd: ChangePower) -> GuestPower:
        await self._over.wait()
        raise RuntimeError("dead")


class MortalHost(WorldHost):
    """Its worker dies at the first calls, after their effect, and comes back each time."""

    deaths = 4

    @activity.defn
    async def change_power(self, cmd: ChangePower) -> GuestPower:
        power = await super().change_power(cmd)
        if self.deaths:
            self.deaths -= 1
            await asyncio.Event().wait()  # no heartbeat any more
        return power


@pytest.fixture
async def client(address: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    # Seen by the workflows because their modules are passed through, as in the control worker.
    monkeypatch.setattr(operation, "HOST_ANSWERS_WITHIN", SOON)
    for name in ("spawn_guest", "change_power"):
        monkeypatch.setitem(POLICIES, name, replace(POLICIES[name], heartbeat=SOON))
    return await connect(address, "default")


@asynccontextmanager
async def workers(client: Client, world: World, first: WorldHost | None) -> AsyncIterator[None]:
    over = asyncio.Event()
    async with AsyncExitStack() as stack:
        control = Worker(
            client,
            task_queue=CONTROL_QUEUE,
            workflows=WORKFLOWS,
            activities=implemented(WorldControl(world), ControlActivities),
            workflow_runner=SANDBOX,
        )
        await stack.enter_async_context(control)
        for host in HOSTS:
            dying = first or DyingHost(world, host, over)
            subject = dying if host == DYING else WorldHost(world, host)
            worker = Worker(
                client,
                task_queue=host_queue(host),
                activities=implemented(subject, HostActivities),
                max_concurrent_activities=1 if isinstance(subject, DyingHost) else 10,
            )
            await stack.enter_async_context(worker)
        stack.callback(over.set)
        yield


async def play(client: Client, world: World, lifecycle: str, first: WorldHost | None = None) -> str:
    async with workers(client, world, first):
        ref = Ref(new_id(), "s", "project-1", "req-1", lifecycle)
        world.operations[ref.operation_id] = "accepted"
        outcome: str = await client.execute_workflow(
            LIFECYCLES[lifecycle].workflow,
            ref,
            id=f"server:s:{lifecycle}",
            task_queue=CONTROL_QUEUE,
            result_type=str,
        )
        return outcome


async def test_a_worker_that_is_killed_again_and_again_does_not_fail_the_operation(
    client: Client,
) -> None:
    """More often than a step is tried."""
    world = World(servers={"s": Row(VmState.ACTIVE, host=DYING, epoch=1)})
    world.claims["s"] = (DYING, "earlier", 1, 1)
    world.guests[DYING, "s"] = (1, PowerState.RUNNING)
    assert await play(client, world, "stop", MortalHost(world, DYING)) == "succeeded"
    assert world.servers["s"].vm_state is VmState.STOPPED


async def test_a_build_is_placed_again_when_its_host_dies_at_work(client: Client) -> None:
    world = World(servers={"s": Row(VmState.BUILDING)}, silent_later={DYING})
    assert await play(client, world, "create") == "succeeded"
    assert world.servers["s"].host == PRESENT[0]
    assert world.leaks() == []


async def test_a_power_operation_ends_when_its_host_dies_at_work(client: Client) -> None:
    world = World(servers={"s": Row(VmState.ACTIVE, host=DYING, epoch=1)})
    world.claims["s"] = (DYING, "earlier", 1, 1)
    world.guests[DYING, "s"] = (1, PowerState.RUNNING)
    assert await play(client, world, "stop") == "failed"
    row = world.servers["s"]
    assert (row.vm_state, row.task_state) == (VmState.ACTIVE, None)
