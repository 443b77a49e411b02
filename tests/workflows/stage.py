"""Where workflows are played in tests: an embedded Temporal server, a world, workers over it, single runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError
from temporalio.worker import Worker

from domain.ids import CONTROL_QUEUE, host_queue, new_id
from domain.lifecycle import LIFECYCLES
from domain.states import PowerState, VmState
from runtime.temporal import connect, start_operation
from tests.world import HOSTS, Director, Row, Script, World, WorldControl, WorldHost
from workers.registry import implemented
from workflows.catalog import WORKFLOWS
from workflows.contract import ControlActivities, HostActivities, Ref

END_S = 60


@dataclass
class Stage:
    """One world with its workers; many runs may play on it at once."""

    client: Client
    world: World
    director: Director


@asynccontextmanager
async def staged(address: str) -> AsyncIterator[Stage]:
    """A stage on this Temporal server; its workers end with the block."""
    client = await connect(address, "default")
    stage = Stage(client, World(), Director())
    async with AsyncExitStack() as stack:
        control = Worker(
            client,
            task_queue=CONTROL_QUEUE,
            workflows=WORKFLOWS,
            activities=implemented(WorldControl(stage.world), ControlActivities),
            interceptors=[stage.director],
        )
        await stack.enter_async_context(control)
        for host in HOSTS:
            worker = Worker(
                client,
                task_queue=host_queue(host),
                activities=implemented(WorldHost(stage.world, host), HostActivities),
                interceptors=[stage.director],
            )
            await stack.enter_async_context(worker)
        yield stage


class Run:
    """One operation on a server of its own."""

    def __init__(self, stage: Stage, lifecycle: str) -> None:
        self.client, self.world = stage.client, stage.world
        self.ref = Ref(new_id(), new_id(), "project-1", "req-1", lifecycle)
        self.script = stage.director.scripts.setdefault(self.handle.id, Script())
        server_id, row = self.ref.server_id, LIFECYCLES[lifecycle]
        vm_state = VmState.ACTIVE if lifecycle == "delete" else row.allowed[0]
        self.row = self.world.servers[server_id] = Row(vm_state, row.task_state)
        if lifecycle != "create":
            self.row.host, self.row.epoch = HOSTS[0], 1
            self.world.claims[server_id] = (HOSTS[0], "earlier", 1, 1)
            self.world.guests[HOSTS[0], server_id] = (1, PowerState.RUNNING)

    @property
    def handle(self) -> WorkflowHandle[object, object]:
        return self.client.get_workflow_handle(f"server:{self.ref.server_id}")

    async def delete(self) -> None:
        if self.row.vm_state is VmState.DELETED:
            return  # the API answers 404 from here on
        self.row.task_state = LIFECYCLES["delete"].task_state  # as the API does at accept
        ref = Ref(new_id(), self.ref.server_id, "project-1", "req-2", "delete")
        self.world.operations[ref.operation_id] = "accepted"
        await start_operation(self.client, "DeleteServer", ref)

    async def play(self) -> Run:
        self.world.operations[self.ref.operation_id] = "accepted"
        await start_operation(self.client, LIFECYCLES[self.ref.lifecycle].workflow, self.ref)
        try:
            await asyncio.wait_for(self.handle.result(), END_S)
        except WorkflowFailureError as error:
            if not isinstance(error.cause, CancelledError):  # only a cancelled run may fail
                raise
        return self
