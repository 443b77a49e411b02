"""What happens when a host does not answer; its deadline is a second here."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
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
from workflows.contract import ControlActivities, HostActivities, Ref

pytestmark = pytest.mark.temporal
AWAY, *PRESENT = HOSTS


@pytest.fixture
async def client(address: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    # Seen by the workflows because their modules are passed through, as in the control worker.
    monkeypatch.setattr(operation, "HOST_ANSWERS_WITHIN", timedelta(seconds=1))
    return await connect(address, "default")


async def play(client: Client, world: World, lifecycle: str, server_id: str) -> str:
    """Carry out one operation while the first host has no worker."""
    async with AsyncExitStack() as stack:
        control = Worker(
            client,
            task_queue=CONTROL_QUEUE,
            workflows=WORKFLOWS,
            activities=implemented(WorldControl(world), ControlActivities),
            workflow_runner=SANDBOX,
        )
        await stack.enter_async_context(control)
        for host in PRESENT:
            activities = implemented(WorldHost(world, host), HostActivities)
            worker = Worker(client, task_queue=host_queue(host), activities=activities)
            await stack.enter_async_context(worker)
        ref = Ref(new_id(), server_id, "project-1", "req-1", lifecycle)
        world.operations[ref.operation_id] = "accepted"
        outcome: str = await client.execute_workflow(
            LIFECYCLES[lifecycle].workflow,
            ref,
            id=f"server:{server_id}:{lifecycle}",
            task_queue=CONTROL_QUEUE,
            result_type=str,
        )
        return outcome


async def test_a_create_on_a_host_that_went_away_is_placed_on_another(client: Client) -> None:
    world = World(servers={"s": Row(VmState.BUILDING)}, silent_later={AWAY})
    assert await play(client, world, "create", "s") == "succeeded"
    assert world.servers["s"].vm_state is VmState.ACTIVE
    assert world.servers["s"].host == PRESENT[0]
    assert world.leaks() == []


async def test_a_host_that_reports_but_takes_no_task_is_passed_over_the_second_time(
    client: Client,
) -> None:
    world = World(servers={"s": Row(VmState.BUILDING)})
    assert await play(client, world, "create", "s") == "succeeded"
    assert world.servers["s"].host == PRESENT[0]
    assert world.leaks() == []


async def test_a_server_on_a_host_that_went_away_can_be_deleted(client: Client) -> None:
    world = World(servers={"s": Row(VmState.ACTIVE, host=AWAY, epoch=1)})
    world.claims["s"] = (AWAY, "earlier", 1, 1)
    world.guests[AWAY, "s"] = (1, PowerState.RUNNING)
    assert await play(client, world, "delete", "s") == "succeeded"
    assert world.servers["s"].vm_state is VmState.DELETED
    assert world.claims == {}


async def test_a_power_operation_on_a_host_that_went_away_says_so(client: Client) -> None:
    world = World(servers={"s": Row(VmState.ACTIVE, host=AWAY, epoch=1)})
    world.claims["s"] = (AWAY, "earlier", 1, 1)
    assert await play(client, world, "pause", "s") == "failed"
    assert world.servers["s"].vm_state is VmState.ACTIVE
    assert world.servers["s"].task_state is None
