"""The generated unwind harness: for every lifecycle and every activity call of its good run, break there.

Nobody lists steps by hand: the good run teaches the harness which calls there are. Afterwards the world
must have no leak and the row must be in the state the lifecycle table says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from domain.errors import Kind
from domain.guest import Fence
from domain.ids import CONTROL_QUEUE, host_queue, new_id
from domain.lifecycle import LIFECYCLES
from domain.states import PowerState, VmState
from runtime.temporal import connect, start_operation
from tests.temporal_server import temporal_server
from tests.world import HOSTS, Row, Script, World, WorldControl, WorldHost, spec
from workers.registry import implemented
from workflows.catalog import WORKFLOWS
from workflows.contract import ControlActivities, HostActivities, Ref, SpawnGuest

pytestmark = pytest.mark.temporal
END_S = 60


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@dataclass
class Run:
    """One server, one operation, one world."""

    client: Client
    world: World
    script: Script
    ref: Ref

    @property
    def row(self) -> Row:
        return self.world.servers[self.ref.server_id]

    @property
    def handle(self) -> WorkflowHandle[object, object]:
        return self.client.get_workflow_handle(f"server:{self.ref.server_id}")

    def another(self, lifecycle: str) -> Ref:
        return Ref(new_id(), self.ref.server_id, "project-1", "req-2", lifecycle)

    async def delete(self) -> None:
        # What the API does: the task state shows the delete from its accept on.
        self.row.task_state = LIFECYCLES["delete"].task_state
        await start_operation(self.client, "DeleteServer", self.another("delete"))

    async def play(self) -> None:
        row = LIFECYCLES[self.ref.lifecycle]
        await start_operation(self.client, row.workflow, self.ref)
        try:
            await asyncio.wait_for(self.handle.result(), END_S)
        except WorkflowFailureError as error:
            if not isinstance(error.cause, CancelledError):  # only a cancelled run may fail
                raise


def prepare(client: Client, lifecycle: str) -> Run:
    server_id = new_id()
    world, row = World(), LIFECYCLES[lifecycle]
    vm_state = row.allowed[0] if lifecycle != "delete" else VmState.ACTIVE
    world.servers[server_id] = Row(vm_state, row.task_state)
    if lifecycle != "create":
        world.servers[server_id].host = HOSTS[0]
        world.servers[server_id].epoch = 1
        world.claims[server_id] = (HOSTS[0], "earlier", 1, 1)
        world.guests[HOSTS[0], server_id] = (1, PowerState.RUNNING)
    ref = Ref(new_id(), server_id, "project-1", "req-1", lifecycle)
    return Run(client, world, Script(), ref)


async def run(address: str, lifecycle: str, setup: Callable[[Run], Awaitable[None] | None]) -> Run:
    """Play one operation in a fresh world with fresh workers; ``setup`` may bend the script."""
    client = await connect(address, "default")
    it = prepare(client, lifecycle)
    setup(it)
    async with AsyncExitStack() as stack:
        control = Worker(
            client,
            task_queue=CONTROL_QUEUE,
            workflows=WORKFLOWS,
            activities=implemented(WorldControl(it.world), ControlActivities),
            interceptors=[it.script],
        )
        await stack.enter_async_context(control)
        for host in HOSTS:
            worker = Worker(
                client,
                task_queue=host_queue(host),
                activities=implemented(WorldHost(it.world, host), HostActivities),
                interceptors=[it.script],
            )
            await stack.enter_async_context(worker)
        await it.play()
    return it


def check(it: Run, *expected: VmState) -> None:
    where = f"calls {it.script.calls}, broken at {it.script.at}"
    assert it.world.leaks() == [], where
    assert it.row.vm_state in expected, where
    assert it.row.task_state is None, where
    assert "running" not in it.world.operations.values(), where


def failure_states(lifecycle: str) -> tuple[VmState, ...]:
    """After a failure: the table's failure state, the state before, or (re-placed) success."""
    row = LIFECYCLES[lifecycle]
    return (row.failure or row.allowed[0], row.success)


def breaks_at(call: str) -> Callable[[], Awaitable[None]]:
    """The failure this activity can really show its workflow, after its effect happened."""
    if call in ("finish_operation", "release_claim"):  # the record: retried until it is written
        error = ApplicationError("the answer was lost", type="Lost")
    elif call == "claim_host":
        error = ApplicationError("none", type=Kind.NO_VALID_HOST, non_retryable=True)
    else:
        error = ApplicationError("broken", type=Kind.UNAVAILABLE, non_retryable=True)

    async def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("lifecycle", LIFECYCLES)
async def test_succeeds(address: str, lifecycle: str) -> None:
    it = await run(address, lifecycle, lambda _: None)
    check(it, LIFECYCLES[lifecycle].success)


@pytest.mark.parametrize("lifecycle", LIFECYCLES)
async def test_succeeds_with_every_activity_run_twice(address: str, lifecycle: str) -> None:
    def setup(it: Run) -> None:
        it.script.twice = True

    it = await run(address, lifecycle, setup)
    check(it, LIFECYCLES[lifecycle].success)


@pytest.mark.parametrize("repeat_undo", [False, True], ids=["undo once", "undo twice"])
@pytest.mark.parametrize("lifecycle", LIFECYCLES)
async def test_failure_at_each_call_leaves_no_leak(
    address: str, lifecycle: str, repeat_undo: bool
) -> None:
    good = await run(address, lifecycle, lambda _: None)
    for number, call in enumerate(good.script.calls):

        def setup(it: Run, number: int = number, call: str = call) -> None:
            it.script.twice = repeat_undo
            it.script.at, it.script.then = number, breaks_at(call)

        it = await run(address, lifecycle, setup)
        check(it, *failure_states(lifecycle))


@pytest.mark.parametrize("lifecycle", LIFECYCLES)
async def test_cancel_at_each_call_leaves_no_leak(address: str, lifecycle: str) -> None:
    good = await run(address, lifecycle, lambda _: None)
    for number in range(len(good.script.calls)):

        def setup(it: Run, number: int = number) -> None:
            it.script.at, it.script.then = number, it.handle.cancel

        it = await run(address, lifecycle, setup)
        check(it, *failure_states(lifecycle))


@pytest.mark.parametrize("lifecycle", LIFECYCLES)
async def test_delete_at_each_call_wins_and_leaves_nothing(address: str, lifecycle: str) -> None:
    good = await run(address, lifecycle, lambda _: None)
    for number in range(len(good.script.calls)):

        def setup(it: Run, number: int = number) -> None:
            it.script.at, it.script.then = number, it.delete

        it = await run(address, lifecycle, setup)
        check(it, VmState.DELETED)
        assert it.world.guests == {}, it.script.calls


async def test_every_host_failing_ends_in_error_with_the_first_cause(address: str) -> None:
    def setup(it: Run) -> None:
        async def broken() -> None:
            raise ApplicationError("disk on fire", type=Kind.UNAVAILABLE, non_retryable=True)

        it.script.always["spawn_guest"] = broken

    it = await run(address, "create", setup)
    check(it, VmState.ERROR)
    assert it.script.calls.count("spawn_guest") == len(HOSTS)
    assert "disk on fire" in (it.row.fault or "")


async def test_a_late_spawn_is_refused_after_its_destroy(address: str) -> None:
    it = await run(address, "delete", lambda _: None)
    host = WorldHost(it.world, HOSTS[0])
    late = SpawnGuest(Fence(1, "earlier"), spec(it.ref.server_id))
    with pytest.raises(ApplicationError, match="fenced"):
        await host.spawn_guest(late)
