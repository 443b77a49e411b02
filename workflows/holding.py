"""Waiting for an operator at a failed step: shown in the record and the Web UI, ended by a verb or a deadline."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError

from domain.states import OperationState
from workflows.contract import ControlActivities, Failure, GoOn, Hold, Order
from workflows.operation import Operation, do, show_state

RETRY, RESUME, SKIP, ABORT, REPLACE = "retry", "resume", "skip", "abort", "replace"
MEANINGS = {
    RETRY: "undo this host's part and do it again here, from its start",
    RESUME: "the cause is mended: go on with this step, without repeating those before it",
    SKIP: "go on without this step",
    REPLACE: "undo this host's part and take the next host",
    ABORT: "undo everything; the server ends in ERROR",
}
_DEADLINE = Order(by="deadline", reason="nobody decided in time")


class Aborted(Exception):
    """An operator, or the deadline, gave the operation up; the message is the cause."""


class Holding(Operation):
    """An operation that can wait for an operator. Each verb is an Update; one that does not fit now is refused
    with a reason and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._holds = 0
        self._offered: tuple[str, ...] = ()
        """The verbs that would be taken now; none when nothing is waited for."""
        self._said: tuple[str, Order] | None = None
        self._gone_on = 0
        """The last wait that has ended with a verb."""
        self._overtaken = False
        """Whether a delete or a cancel ended a wait."""

    async def wait_for_operator(self, failure: Failure, verbs: tuple[str, ...]) -> str:
        """The verb an operator chose; Aborted after ``abort`` or the deadline."""
        self._holds += 1
        number, until = self._holds, timedelta(seconds=failure.ref.hold_s)
        deadline = workflow.now() + until
        hold = Hold(failure, number, verbs, deadline.timestamp())
        await do(ControlActivities.hold_operation, hold)
        show_state(OperationState.WAITING_OPERATOR)
        workflow.set_current_details(_details(failure, verbs, deadline.isoformat()))
        self._said, self._offered = None, verbs
        try:
            with suppress(asyncio.TimeoutError):
                await workflow.wait_condition(
                    lambda: self._said is not None,
                    timeout=until,
                    timeout_summary="deadline of the wait for an operator",
                )
            self._show_running()
            verb, order = self._said or (ABORT, _DEADLINE)
            await do(ControlActivities.release_hold, GoOn(failure.ref, number, verb, order))
            self._gone_on = number
        except (asyncio.CancelledError, FailureError):
            # Also when a verb was said and is being written down: the operation ends only when whoever said
            # it has been answered.
            self._overtaken = True
            self._show_running()
            raise
        if verb == ABORT:
            raise Aborted(f"{failure.error} (given up by {order.by or 'an operator'})")
        return verb

    def _show_running(self) -> None:
        self._offered = ()
        show_state(OperationState.RUNNING)
        workflow.set_current_details("")

    # --- verbs ----------------------------------------------------------------------------------

    @workflow.update
    async def retry(self, order: Order | None = None) -> str:
        """Undo this host's part and do it again there."""
        return await self._take(RETRY, order)

    @retry.validator
    def _may_retry(self, order: Order | None = None) -> None:
        self._check(RETRY)

    @workflow.update
    async def resume(self, order: Order | None = None) -> str:
        """Go on with the failed step."""
        return await self._take(RESUME, order)

    @resume.validator
    def _may_resume(self, order: Order | None = None) -> None:
        self._check(RESUME)

    @workflow.update
    async def skip(self, order: Order | None = None) -> str:
        """Go on without the failed step."""
        return await self._take(SKIP, order)

    @skip.validator
    def _may_skip(self, order: Order | None = None) -> None:
        self._check(SKIP)

    @workflow.update
    async def replace(self, order: Order | None = None) -> str:
        """Undo this host's part and take the next host."""
        return await self._take(REPLACE, order)

    @replace.validator
    def _may_replace(self, order: Order | None = None) -> None:
        self._check(REPLACE)

    @workflow.update
    async def abort(self, order: Order | None = None) -> str:
        """Give up and undo."""
        return await self._take(ABORT, order)

    @abort.validator
    def _may_abort(self, order: Order | None = None) -> None:
        self._check(ABORT)

    async def _take(self, verb: str, order: Order | None) -> str:
        """Answers when the record shows that the operation goes on."""
        number = self._holds
        self._said, self._offered = (verb, order or Order()), ()
        await workflow.wait_condition(lambda: self._gone_on >= number or self._overtaken)
        if self._gone_on < number:
            raise ApplicationError("the operation was deleted or cancelled meanwhile")
        return f"{verb}: {MEANINGS[verb]}"

    def _check(self, verb: str) -> None:
        if verb not in self._offered:
            now = (
                f"it waits for: {', '.join(self._offered)}"
                if self._offered
                else "it is not waiting"
            )
            raise ValueError(f"'{verb}' does not fit: {now}")


def _details(failure: Failure, verbs: tuple[str, ...], deadline: str) -> str:
    """What the Web UI shows, in Markdown."""
    where = f" on host `{failure.host}`" if failure.host else ""
    lines = [
        f"### Waiting for an operator at step `{failure.step}`{where}",
        "",
        f"    {' '.join(failure.error.split())}",  # as code: it may quote what a tenant wrote
        "",
        "Send one of these Updates:",
        "",
        *(f"- **{verb}**: {MEANINGS[verb]}" for verb in verbs),
        "",
        f"If nobody does, it is given up at {deadline}.",
    ]
    return "\n".join(lines)
