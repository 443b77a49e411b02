"""A build that waits for an operator at the step that failed: every verb, every stage, and what overtakes it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from domain.errors import Kind
from domain.guest import STAGES
from domain.states import VmState
from runtime.temporal import start_operation
from tests.workflows.stage import WITHIN_S, HeldRun, Stage
from tests.world import LIVE
from workflows.contract import Order

pytestmark = pytest.mark.temporal


def check_active(run: HeldRun) -> None:
    assert [leak for leak in run.world.leaks() if run.ref.server_id in leak] == []
    assert run.row.vm_state is VmState.ACTIVE
    assert run.world.operations[run.ref.operation_id] == "succeeded"


def check_gone(run: HeldRun, *states: VmState) -> None:
    assert [leak for leak in run.world.leaks() if run.ref.server_id in leak] == []
    assert run.ref.server_id not in run.world.claims
    assert all(server != run.ref.server_id for _, server in run.world.guests)
    assert run.row.vm_state in states
    assert run.world.operations[run.ref.operation_id] not in LIVE


@pytest.mark.parametrize("at", STAGES)
async def test_a_resumed_build_goes_on_at_the_stage_that_failed(stage: Stage, at: str) -> None:
    run = HeldRun(stage, at)
    await run.held()
    hold = run.world.holds[run.ref.operation_id]
    assert (hold.failure.step, hold.failure.error) == (at, "disk on fire")
    assert run.ref.server_id in run.world.claims
    claimed = run.script.calls.count("claim_host")
    await run.say("resume")
    await run.playing
    check_active(run)
    assert run.spawns == [None, at]
    assert run.script.calls.count("claim_host") == claimed == 1
    assert "destroy_guest" not in run.script.calls
    assert [(s.verb, s.order.by) for s in run.world.said if s.ref == run.ref] == [("resume", "ann")]


async def test_a_retried_step_begins_afresh_on_the_same_host_under_a_new_epoch(
    stage: Stage,
) -> None:
    run = HeldRun(stage)
    await run.held()
    host, _, _, epoch = run.world.claims[run.ref.server_id]
    await run.say("retry")
    await run.playing
    check_active(run)
    assert run.world.claims[run.ref.server_id][0] == host
    assert run.world.claims[run.ref.server_id][3] > epoch
    assert run.spawns == [None, None]


async def test_a_replaced_build_takes_the_next_host_and_leaves_nothing_on_the_first(
    stage: Stage,
) -> None:
    run = HeldRun(stage)
    await run.held()
    first = run.row.host
    await run.say("replace")
    await run.playing
    check_active(run)
    assert run.row.host != first


async def test_a_step_that_can_be_missed_may_be_skipped_and_no_other(stage: Stage) -> None:
    drive, nics = HeldRun(stage, "config_drive"), HeldRun(stage, "nics")
    await asyncio.gather(drive.held(), nics.held())
    await drive.say("skip")
    await drive.playing
    check_active(drive)
    assert drive.spawns == [None, "nics"]
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await nics.say("skip")
    assert "it waits for: resume, retry, replace, abort" in str(refused.value.cause)
    assert await nics.offers()
    await nics.say("resume")
    await nics.playing
    check_active(nics)


async def test_an_aborted_build_is_undone_and_ends_in_error_with_its_cause(stage: Stage) -> None:
    run = HeldRun(stage)
    await run.held()
    await run.say("abort")
    await run.playing
    check_gone(run, VmState.ERROR)
    assert run.row.fault == "disk on fire (given up by ann)"


async def test_nobody_deciding_in_time_aborts(stage: Stage) -> None:
    run = HeldRun(stage, hold_s=1.0)
    await run.playing
    check_gone(run, VmState.ERROR)
    assert run.row.fault == "disk on fire (given up by deadline)"


async def test_a_build_waits_again_when_it_fails_again(stage: Stage) -> None:
    run = HeldRun(stage, times=2)
    await run.held()
    await run.say("resume")
    await run.held(2)
    await run.say("retry")
    await run.playing
    check_active(run)


async def test_a_verb_for_a_build_that_does_not_wait_is_refused_and_changes_nothing(
    stage: Stage,
) -> None:
    run = HeldRun(stage)
    await run.held()
    await run.say("resume")
    await run.playing
    other = HeldRun(stage, times=0)
    told = []

    async def too_early() -> None:
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await other.say("abort")
        told.append(str(refused.value.cause))

    other.script.at, other.script.then = 0, too_early
    await other.playing
    check_active(other)
    assert "it is not waiting" in told[0]


async def test_a_full_cloud_is_waited_with_and_decided_anew(stage: Stage) -> None:
    run = HeldRun(stage, times=0)
    full = [True]

    async def no_host() -> None:
        if full:
            raise ApplicationError("cloud is full", type=Kind.NO_VALID_HOST, non_retryable=True)

    run.script.always["claim_host"] = no_host
    await run.held()
    assert run.world.holds[run.ref.operation_id].verbs == ("retry", "resume", "abort")
    full.clear()
    await run.say("resume")
    await run.playing
    check_active(run)


@pytest.mark.parametrize("at", STAGES)
async def test_a_delete_wins_over_a_wait(stage: Stage, at: str) -> None:
    run = HeldRun(stage, at)
    await run.held()
    await run.delete()
    await run.playing
    check_gone(run, VmState.DELETED)


@pytest.mark.parametrize("by", ["delete", "cancel"])
async def test_a_delete_or_a_cancel_while_a_verb_is_written_down_leaves_nobody_waiting(
    stage: Stage, by: str
) -> None:
    """Neither the operation, which waits for its Updates to be answered, nor who sent the Update."""
    run = HeldRun(stage)
    await run.held()

    async def overtake() -> None:
        await (run.delete() if by == "delete" else run.handle.cancel())
        # Longer than a workflow task: the next one brings the news, and the cancel of this activity.
        async with asyncio.timeout(WITHIN_S):
            await asyncio.Event().wait()

    run.script.always["release_hold"] = overtake
    async with asyncio.timeout(WITHIN_S):
        with suppress(WorkflowUpdateFailedError, RPCError):
            await run.say("resume")
        await run.playing
    assert [leak for leak in run.world.leaks() if run.ref.server_id in leak] == []
    if by == "delete":
        check_gone(run, VmState.DELETED)


async def test_a_cancel_ends_a_wait_and_undoes(stage: Stage) -> None:
    run = HeldRun(stage)
    await run.held()
    await run.handle.cancel()
    await run.playing
    check_gone(run, VmState.ERROR)


async def test_what_a_terminated_build_left_is_undone_by_a_run_for_that_alone(stage: Stage) -> None:
    run = HeldRun(stage)
    await run.held()
    await run.handle.terminate()
    with pytest.raises(WorkflowFailureError):
        await run.playing
    assert run.ref.server_id in run.world.claims
    again = replace(run.ref, unwind="terminated")
    await start_operation(run.client, "CreateServer", again)
    assert await run.handle.result() == "failed"
    check_gone(run, VmState.ERROR)
    assert run.row.fault == "terminated"


async def test_the_same_order_twice_is_one_order(stage: Stage) -> None:
    run = HeldRun(stage)
    await run.held()
    answers = await asyncio.gather(
        *(run.handle.execute_update("resume", Order(), id="order-1") for _ in range(5))
    )
    await run.playing
    check_active(run)
    assert len(set(answers)) == 1
    assert len([s for s in run.world.said if s.ref == run.ref]) == 1


async def test_without_a_wish_to_wait_the_failure_is_written_down_and_the_next_host_taken(
    stage: Stage,
) -> None:
    run = HeldRun(stage, hold_s=0.0)
    await run.playing
    check_active(run)
    [failure] = [f for f in run.world.failures if f.ref == run.ref]
    assert (failure.step, failure.host) == ("nics", "host-1")
    assert [s.error for s in failure.stages] == [None, None, None, "disk on fire"]
