"""Where workflows are played in tests: an embedded Temporal server, a world, workers over it, single runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from domain.errors import Kind
from domain.guest import STAGES
from domain.ids import CONTROL_QUEUE, host_queue, new_id
from domain.lifecycle import LIFECYCLES
from domain.states import PowerState, VmState
from runtime.temporal import STATE, connect, start_operation
from tests.world import HOSTS, Director, Row, Script, World, WorldControl, WorldHost
from workers.registry import implemented
from workflows.catalog import WORKFLOWS
from workflows.contract import ControlActivities, HostActivities, Order, Ref

END_S = 60
DAY_S = 86_400.0
WITHIN_S = 30


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


class HeldRun(Run):
    """A create that is to wait; ``times`` of its spawns fail at a stage, after its effect."""

    def __init__(
        self, stage: Stage, at: str = "nics", times: int = 1, hold_s: float = DAY_S
    ) -> None:
        super().__init__(stage, "create")
        self.ref = replace(self.ref, hold_s=hold_s)
        self.failing_at, self._left = at, times
        self.script.always["spawn_guest"] = self._fail
        self.playing = asyncio.ensure_future(self.play())

    async def _fail(self) -> None:
        if self._left:
            self._left -= 1
            taken = STAGES[: STAGES.index(self.failing_at) + 1]
            stages = [{"name": s, "started_at": 1.0, "finished_at": 2.0} for s in taken]
            stages[-1]["error"] = "disk on fire"
            raise ApplicationError(
                "disk on fire", stages, type=Kind.UNAVAILABLE, non_retryable=True
            )

    async def held(self, number: int = 1) -> None:
        """Back once it waits for the n-th time."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                hold = self.world.holds.get(self.ref.operation_id)
                if hold is not None and hold.number == number and await self.offers():
                    return
                await asyncio.sleep(0.02)

    async def offers(self) -> bool:
        """Whether the workflow itself shows that it waits."""
        shown = (await self.handle.describe()).typed_search_attributes.get(STATE)
        return shown == "waiting_operator"

    async def say(self, verb: str) -> str:
        said: str = await self.handle.execute_update(verb, Order("ann", "because"))
        return said

    @property
    def spawns(self) -> list[str | None]:
        """The stage each spawn was asked to go on with."""
        return [s.resume_at for s in self.world.spawned if s.spec.server_id == self.ref.server_id]
