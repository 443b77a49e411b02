"""What every operation shares: calling activities, undoing them, yielding to delete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    FailureError,
    TimeoutType,
    is_cancelled_exception,
)
from temporalio.exceptions import TimeoutError as ActivityTimeoutError

from domain.guest import StageTaken
from domain.ids import STATE_ATTRIBUTE, host_queue
from workflows.contract import Begin, ControlActivities, Failure, Finish, Ref
from workflows.policies import DEATHS_FORGIVEN, HOST_ANSWERS_WITHIN, POLICIES

Command = TypeVar("Command")
Result = TypeVar("Result")

SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
"""Outcomes of an operation workflow."""
_STATE = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)


async def do(
    activity: Callable[[Any, Command], Awaitable[Result]], cmd: Command, *, host: str | None = None
) -> Result:
    """Run one activity under its row of the policy table; on a host's queue if ``host`` is given."""
    name = activity.__name__
    policy = POLICIES[name]
    if policy.local:
        local: Result = await workflow.execute_local_activity_method(
            activity,
            cmd,
            start_to_close_timeout=policy.start_to_close,
            retry_policy=policy.retry,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=name,
        )
        return local
    assert policy.on_host is (host is not None), f"{name} and its host"  # noqa: S101  # a programming error
    for _ in range(DEATHS_FORGIVEN):
        try:
            return await _remote(activity, cmd, host)
        except ActivityError as error:
            if not _worker_died(error):
                raise
    return await _remote(activity, cmd, host)


async def _remote(
    activity: Callable[[Any, Command], Awaitable[Result]], cmd: Command, host: str | None
) -> Result:
    name = activity.__name__
    policy = POLICIES[name]
    remote: Result = await workflow.execute_activity_method(
        activity,
        cmd,
        task_queue=host_queue(host) if host else None,
        schedule_to_start_timeout=HOST_ANSWERS_WITHIN if host else None,
        start_to_close_timeout=policy.start_to_close,
        heartbeat_timeout=policy.heartbeat,
        retry_policy=policy.retry,
        # The default stops waiting at once; an undo would then race a do that is still running.
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=f"{name} on {host}" if host else name,
    )
    return remote


def _worker_died(error: ActivityError) -> bool:
    """Whether the last try ended because its worker was not heard of any more."""
    cause = error.cause
    return isinstance(cause, ActivityTimeoutError) and cause.type is TimeoutType.HEARTBEAT


def host_did_not_answer(error: BaseException) -> bool:
    """Whether an activity failed because no worker of its host took it."""
    cause = error.cause if isinstance(error, ActivityError) else None
    return isinstance(cause, ActivityTimeoutError) and cause.type is TimeoutType.SCHEDULE_TO_START


def failure_kind(error: BaseException) -> str | None:
    """The ``domain.errors.Kind`` behind an activity failure, if it has one."""
    cause = error.cause if isinstance(error, ActivityError) else error
    return cause.type if isinstance(cause, ApplicationError) else None


def will_never_do(error: BaseException) -> bool:
    """Whether the activity itself said that trying again cannot help."""
    cause = error.cause if isinstance(error, ActivityError) else error
    return isinstance(cause, ApplicationError) and cause.non_retryable


def stages_of(error: BaseException) -> tuple[StageTaken, ...]:
    """The stages that a host could tell of its failed call; empty when it could not."""
    cause = error.cause if isinstance(error, ActivityError) else error
    if not isinstance(cause, ApplicationError) or not cause.details:
        return ()
    told: list[dict[str, Any]] = cause.details[0]
    return tuple(StageTaken(**stage) for stage in told)


def failure_of(ref: Ref, error: BaseException, activity: str, host: str | None) -> Failure:
    """What the record is told of an activity's failure: its step is the stage of the driver's call that
    failed, or else the activity."""
    stages = stages_of(error)
    step = stages[-1].name if stages else activity
    return Failure(ref, step, explain(error, host), host, stages)


def explain(error: BaseException, host: str | None = None) -> str:
    """The cause in one sentence, for the fault and the operation."""
    if host_did_not_answer(error):
        return f"Host {host} did not answer within {HOST_ANSWERS_WITHIN.total_seconds():.0f} s"
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError):
        return cause.message
    if isinstance(cause, ActivityTimeoutError) and isinstance(error, ActivityError):
        return f"{error.activity_type} on host {host} timed out ({cause.type.name if cause.type else ''})"
    return str(cause or error)


async def undisturbed(work: Coroutine[Any, Any, Result]) -> Result:
    """Await something that must not be left half-way: a cancel that comes meanwhile finds it done."""
    task = asyncio.ensure_future(work)
    while True:
        with suppress(asyncio.CancelledError):
            return await asyncio.shield(task)


def show_state(state: str) -> None:
    """Let operators find this run by the search attribute ``OperationState``."""
    workflow.upsert_search_attributes([_STATE.value_set(state)])


class Saga:
    """Undo in reverse order when the block fails or is cancelled. Register the undo before the do."""

    def __init__(self, ref: Ref) -> None:
        self._ref = ref
        self._undo: list[Callable[[], Awaitable[object]]] = []

    def on_failure(
        self,
        activity: Callable[[Any, Command], Awaitable[object]],
        cmd: Command,
        *,
        host: str | None = None,
    ) -> None:
        """Run this activity if the block does not end well."""
        self._undo.append(lambda: do(activity, cmd, host=host))

    async def __aenter__(self) -> Saga:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _tb: TracebackType | None
    ) -> bool:
        """Unwind on any failure or cancel; swallows it when the record says that the block had ended well."""
        if not isinstance(exc, Exception | asyncio.CancelledError):
            return False  # it ended well, or the workflow only leaves this worker's memory
        return not await undisturbed(self._unwound())

    async def _unwound(self) -> bool:
        # A workflow task that is lost takes the memory of its local activities with it: the last step
        # may have written success, and a cancel come in before this workflow could know.
        verdict = await do(ControlActivities.may_unwind, Begin(self._ref))
        if verdict.allowed:
            await self._unwind()
        return verdict.allowed

    async def _unwind(self) -> None:
        while self._undo:
            try:
                await self._undo.pop()()
            except FailureError as error:
                # A host that does not answer keeps what it has until it reports again; it is then told
                # to remove it, because the record's epoch has moved on.
                workflow.logger.warning("undo left to the host's next report: %s", error)


class Operation:
    """One lifecycle of one server, under the workflow id that is the server's lock.

    Delete is signal-with-start on that id: it starts DeleteServer on an idle server, and on a busy one
    it tells the running operation, which unwinds and continues as new into DeleteServer.
    """

    def __init__(self) -> None:
        self._delete: Ref | None = None

    @workflow.signal
    def delete(self, ref: Ref) -> None:
        """Delete was asked for; ``ref`` is the delete operation."""
        self._delete = self._delete or ref

    async def carry_out(self, ref: Ref, story: Coroutine[Any, Any, str]) -> str:
        """Run the story of this operation unless delete takes over; returns the outcome."""
        work = asyncio.ensure_future(story)
        gone = asyncio.ensure_future(workflow.wait_condition(lambda: self._delete is not None))
        try:
            await workflow.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
            outcome = await self._outcome(ref, work)
        except asyncio.CancelledError:
            work.cancel()
            outcome = await self._outcome(ref, work)
        gone.cancel()
        if outcome != SUCCEEDED:  # its workflow completes all the same; operators look for these
            show_state(outcome)
        # Whoever sent an Update is told before the workflow is gone.
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._delete is not None:
            workflow.continue_as_new(workflow="DeleteServer", args=[self._delete])
        return outcome

    async def _outcome(self, ref: Ref, work: asyncio.Future[str]) -> str:
        try:
            return await work
        except BaseException as error:
            if not (isinstance(error, asyncio.CancelledError) or is_cancelled_exception(error)):
                raise
        reason = "Deleted meanwhile" if self._delete else "Cancelled by an operator"
        finish = Finish(ref, succeeded=False, error=reason, cancelled=True)
        await do(ControlActivities.finish_operation, finish)
        return CANCELLED


def reraise_cancel(error: BaseException) -> None:
    """In an ``except`` that handles failures: let a cancellation through."""
    if is_cancelled_exception(error) or isinstance(error, CancelledError):
        raise error
