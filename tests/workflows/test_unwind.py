"""The generated unwind harness: for every lifecycle and every activity call of its good run, break there.

Nobody lists steps by hand: the good run teaches the harness which calls there are. Afterwards the world
must have no leak and the row must be in the state the lifecycle table says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
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
from tests.world import HOSTS, Director, Row, Script, World, WorldControl, WorldHost, spec
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
class Stage:
    """One world with its workers; many runs may play on it at once."""

    client: Client
    world: World
    director: Director


@pytest.fixture
async def stage(address: str) -> AsyncIterator[Stage]:
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


async def at_each_call(stage: Stage, lifecycle: str, bend: Callable[[Run, str], None]) -> list[Run]:
    """Learn the calls of a good run, then play one bent run per call, side by side."""
    good = await Run(stage, lifecycle).play()
    runs = []
    for number, call in enumerate(list(good.script.calls)):
        run = Run(stage, lifecycle)
        run.script.at = number
        bend(run, call)
        runs.append(run)
    return await asyncio.gather(*(run.play() for run in runs))


def check(it: Run, *expected: VmState) -> None:
    where = f"calls {it.script.calls}, broken at {it.script.at}"
    assert [leak for leak in it.world.leaks() if it.ref.server_id in leak] == [], where
    assert it.row.vm_state in expected, where
    assert it.row.task_state is None, where
    assert it.world.operations[it.ref.operation_id] not in ("accepted", "running"), where


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
async def test_succeeds_also_with_every_activity_run_twice(stage: Stage, lifecycle: str) -> None:
    once, twice = Run(stage, lifecycle), Run(stage, lifecycle)
    twice.script.twice = True
    for run in await asyncio.gather(once.play(), twice.play()):
        check(run, LIFECYCLES[lifecycle].success)


@pytest.mark.parametrize("repeat_undo", [False, True], ids=["undo once", "undo twice"])
@pytest.mark.parametrize("lifecycle", LIFECYCLES)
async def test_failure_at_each_call_leaves_no_leak(
    stage: Stage, lifecycle: str, repeat_undo: bool
) -> None:
    def bend(run: Run, call: str) -> None:
        run.script.twice = repeat_undo
        run.script.then = breaks_at(call)

    for run in await at_each_call(stage, lifecycle, bend):
        check(run, *failure_states(lifecycle))


@pytest.mark.parametrize("lifecycle", LIFECYCLES)
async def test_cancel_at_each_call_leaves_no_leak(stage: Stage, lifecycle: str) -> None:
    def bend(run: Run, _call: str) -> None:
        run.script.then = run.handle.cancel

    for run in await at_each_call(stage, lifecycle, bend):
        check(run, *failure_states(lifecycle))


@pytest.mark.parametrize("lifecycle", LIFECYCLES)
async def test_delete_at_each_call_wins_and_leaves_nothing(stage: Stage, lifecycle: str) -> None:
    def bend(run: Run, _call: str) -> None:
        run.script.then = run.delete

    for run in await at_each_call(stage, lifecycle, bend):
        check(run, VmState.DELETED)
        assert all(server != run.ref.server_id for _, server in stage.world.guests)


async def test_every_host_failing_ends_in_error_with_the_first_cause(stage: Stage) -> None:
    async def broken() -> None:
        raise ApplicationError("disk on fire", type=Kind.UNAVAILABLE, non_retryable=True)

    run = Run(stage, "create")
    run.script.always["spawn_guest"] = broken
    check(await run.play(), VmState.ERROR)
    assert run.script.calls.count("spawn_guest") == len(HOSTS)
    assert "disk on fire" in (run.row.fault or "")


async def test_a_late_spawn_is_refused_after_its_destroy(stage: Stage) -> None:
    run = await Run(stage, "delete").play()
    host = WorldHost(stage.world, HOSTS[0])
    late = SpawnGuest(Fence(1, "earlier"), spec(run.ref.server_id))
    with pytest.raises(ApplicationError, match="fenced"):
        await host.spawn_guest(late)
