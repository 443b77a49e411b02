"""The gap between commit and start: finds operations without a workflow and puts them right."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import structlog
from sqlalchemy import Engine
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.control.records import UNWINDING, Records, ref_of
from db.idempotency import prune_keys
from db.operations import Operation, live_everywhere
from db.session import now, reading, transaction
from domain.lifecycle import BUILDS, LIFECYCLES
from domain.states import LIVE_OPERATION_STATES, OperationState
from runtime.temporal import run_status, start_operation
from workflows.contract import Finish, Ref, Swept

GRACE = timedelta(seconds=5)
"""An operation younger than this is still being started by the API."""

_log = structlog.get_logger(__name__)
_OVER = {
    WorkflowExecutionStatus.FAILED: "The workflow of this operation failed",
    WorkflowExecutionStatus.TERMINATED: "An operator terminated the workflow of this operation",
    WorkflowExecutionStatus.TIMED_OUT: "The workflow of this operation timed out",
}


class Sweep:
    """One pass over the live operations; safe to run anywhere, any number of times."""

    def __init__(self, client: Client, engine: Engine, records: Records) -> None:
        self._client = client
        self._engine = engine
        self._records = records

    async def run(self) -> Swept:
        """Start what was accepted but never started, close what ended without saying so, forget the
        requests that are too old to come again."""
        await asyncio.to_thread(self._prune)
        restarted, closed = [], []
        for found in await asyncio.to_thread(self._live):
            status = await run_status(self._client, found.server_id)
            if status is WorkflowExecutionStatus.RUNNING:
                continue
            # A workflow writes its operation's end before it closes. So only what is live in a reading
            # taken after the workflow was seen closed has really been left behind.
            operation = await asyncio.to_thread(self._still_live, found.id)
            if operation is None:
                continue
            reason = _OVER.get(status) if status else None
            if operation.state == OperationState.ACCEPTED or reason is None:
                if await self._start(ref_of(operation)):
                    restarted.append(operation.id)
            elif _leaves_something(operation, status):
                if await self._start(replace(ref_of(operation), unwind=reason)):
                    closed.append(operation.id)
            else:
                await asyncio.to_thread(self._close, operation, reason)
                closed.append(operation.id)
        return Swept(tuple(restarted), tuple(closed))

    def _prune(self) -> None:
        with transaction(self._engine) as session:
            prune_keys(session)

    def _live(self) -> list[Operation]:
        with reading(self._engine) as session:
            return live_everywhere(session, now() - GRACE)

    def _still_live(self, operation_id: str) -> Operation | None:
        with reading(self._engine) as session:
            operation = session.get(Operation, operation_id)
            live = operation is not None and operation.state in LIVE_OPERATION_STATES
            return operation if live else None

    async def _start(self, ref: Ref) -> bool:
        try:
            await start_operation(self._client, LIFECYCLES[ref.lifecycle].workflow, ref)
        except WorkflowAlreadyStartedError:
            return False  # somebody was quicker
        _log.warning(
            "operation started by the sweep", operation_id=ref.operation_id, unwind=ref.unwind
        )
        return True

    def _close(self, operation: Operation, reason: str) -> None:
        _log.warning("operation closed by the sweep", operation_id=operation.id, reason=reason)
        self._records.finish(Finish(ref_of(operation), succeeded=False, error=reason))


def _leaves_something(operation: Operation, status: WorkflowExecutionStatus | None) -> bool:
    """Whether a run that has ended without a word may have left a claim or a guest: a build. One whose
    undoing has failed by itself would fail again."""
    hopeless = status is WorkflowExecutionStatus.FAILED and operation.step == UNWINDING
    return operation.lifecycle in BUILDS and not hopeless
