"""The generated unwind harness: for every lifecycle and every activity call of its good run, break there.

Nobody lists steps by hand: the good run teaches the harness which calls there are. Afterwards the world
must have no leak and the row must be in the state the lifecycle table says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from temporalio.exceptions import ApplicationError

from domain.errors import Kind
from domain.guest import Fence
from domain.lifecycle import LIFECYCLES
from domain.states import VmState
from tests.workflows.stage import Run, Stage
from tests.world import HOSTS, LIVE, WorldHost, spec
from workflows.contract import SpawnGuest

pytestmark = pytest.mark.temporal


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
    assert it.world.operations[it.ref.operation_id] not in LIVE, where


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


async def test_a_cancel_after_the_end_was_written_comes_too_late(stage: Stage) -> None:
    """Undoing now would leave an ACTIVE server without its guest."""
    run = Run(stage, "create")

    async def cancel_while_it_returns() -> None:
        await run.handle.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(
                2
            ):  # to be reached by a cancel of the activity, if one comes
                await asyncio.Event().wait()

    run.script.always["finish_operation"] = cancel_while_it_returns
    check(await run.play(), VmState.ACTIVE)


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
