"""Hold the record against itself, the hosts' reports and Temporal; count only what is still there later."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine
from temporalio.client import Client, WorkflowExecutionStatus

from db.audit import audit_record, ended_operations
from db.hosts import signs_of_life
from db.operations import Operation, live_everywhere
from db.session import now, snapshot
from domain.audit import Finding, Violation, lasting, merged
from domain.lifecycle import LIFECYCLES
from domain.states import OperationState
from runtime.executions import Execution, closed_executions, outcome, running_executions
from runtime.temporal import run_status

LOOK_AGAIN_S = (2.0, 11.0)
"""Pauses before a violation is looked at again. Together they are longer than the time between two
reports of a host."""
SWEPT_WITHIN = timedelta(seconds=75)
"""An operation without a workflow is the sweep's to start; only an older one is a violation."""
FRESH_WITHIN = timedelta(seconds=15)
"""A host that lives has reported in this time."""
_ASK_EVERY_S = 0.5
_LISTED = 5000
"""Runs that one look reads from visibility."""
_AT_ONCE = 8
"""Questions to Temporal at a time."""
_LAG = timedelta(seconds=5)
"""Visibility may be as late as this."""
_WORKFLOWS = {row.workflow for row in LIFECYCLES.values()}
_BY_SWEEP = {
    WorkflowExecutionStatus.FAILED,
    WorkflowExecutionStatus.TERMINATED,
    WorkflowExecutionStatus.TIMED_OUT,
    WorkflowExecutionStatus.CANCELED,
}
"""How the workflow of an operation may have ended that another hand closed as failed."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an audit looks."""

    back: timedelta
    """How long ago an operation may have ended for its workflow to be looked up."""
    compared: int
    """How many of those, the newest first."""
    fresh: bool = False
    """Wait until every host has reported since the audit began, so that nothing is passed over because
    it changed after the last report: up to a report's interval."""


class Auditor:
    """Looks at everything; changes nothing."""

    def __init__(self, client: Client, engine: Engine, silent_after_s: float, reach: Reach) -> None:
        self._client = client
        self._engine = engine
        self._silent_after_s = silent_after_s
        self._reach = reach
        self._asking = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> list[Finding]:
        """One finding for each invariant. Takes some seconds when there seem to be violations."""
        if self._reach.fresh:
            await self._reported_since(now())
        found = await self._look()
        for pause in LOOK_AGAIN_S:
            if not any(f.violations for f in found):
                break
            await asyncio.sleep(pause)
            found = lasting(found, await self._look())
        return found

    async def _reported_since(self, start: datetime) -> None:
        """Return when every host that is up has reported, or when that takes too long."""
        while now() - start < FRESH_WITHIN:
            if await asyncio.to_thread(self._all_reported, start):
                return
            await asyncio.sleep(_ASK_EVERY_S)

    def _all_reported(self, start: datetime) -> bool:
        since = start - timedelta(seconds=self._silent_after_s)
        with snapshot(self._engine) as session:
            times = [host.reported_at for host in signs_of_life(session)]
        return all(t >= start for t in times if t is not None and t >= since)

    async def _look(self) -> list[Finding]:
        at = now()
        record, live, ended = await asyncio.to_thread(self._read, at)
        return merged(
            [
                *record,
                await self._started(live, at),
                await self._unowned({o.id for o in live}),
                await self._closed(ended, at),
            ]
        )

    def _read(self, at: datetime) -> tuple[list[Finding], list[Operation], list[Operation]]:
        with snapshot(self._engine) as session:
            return (
                audit_record(session, at, self._silent_after_s),
                live_everywhere(session, at),
                ended_operations(session, at - self._reach.back, at - _LAG, self._reach.compared),
            )

    async def _started(self, live: list[Operation], at: datetime) -> Finding:
        """Every live operation has a running workflow."""
        due = [o for o in live if o.updated_at < at - SWEPT_WITHIN]
        asked = await asyncio.gather(*(self._status(o.server_id) for o in due))
        return Finding(
            "I6",
            len(live),
            tuple(
                Violation(
                    f"operation {o.id}",
                    f"it is {o.state}, but the workflow of server {o.server_id} is {_said(status)}",
                )
                for o, status in zip(due, asked, strict=True)
                if status is not WorkflowExecutionStatus.RUNNING
            ),
        )

    async def _status(self, server_id: str) -> WorkflowExecutionStatus | None:
        async with self._asking:
            return await run_status(self._client, server_id)

    async def _unowned(self, live: set[str]) -> Finding:
        """Every running workflow belongs to a server that a live operation owns."""
        running = await running_executions(self._client, _WORKFLOWS, _LISTED)
        suspects = await asyncio.to_thread(self._without_operation, running)
        asked = await asyncio.gather(*(self._status(e.server_id) for e in suspects))
        return Finding(
            "I6",
            len(running),
            tuple(
                Violation(
                    f"workflow of server {e.server_id} (run {e.run_id})",
                    f"{e.workflow} runs, but no live operation owns the server",
                )
                for e, status in zip(suspects, asked, strict=True)
                if status
                is WorkflowExecutionStatus.RUNNING  # visibility may not know of its end yet
            ),
        )

    def _without_operation(self, running: list[Execution]) -> list[Execution]:
        # Read after the list: an operation's row is there before its workflow.
        with snapshot(self._engine) as session:
            owned = {o.server_id for o in live_everywhere(session, now())}
        return [e for e in running if e.server_id not in owned]

    async def _closed(self, ended: list[Operation], at: datetime) -> Finding:
        """Every operation that ended has a closed workflow that ended the same way."""
        since = at - self._reach.back - timedelta(minutes=1)
        runs = _runs_of(ended, await closed_executions(self._client, _WORKFLOWS, since, _LISTED))
        reasons = await asyncio.gather(*(self._differs(o, runs[o.id]) for o in ended))
        return Finding(
            "I7",
            len(ended),
            tuple(
                Violation(f"operation {o.id} ({o.lifecycle} of server {o.server_id})", reason)
                for o, reason in zip(ended, reasons, strict=True)
                if reason
            ),
        )

    async def _differs(self, operation: Operation, runs: list[Execution]) -> str:
        """What is wrong with an operation's end; empty if nothing is."""
        if operation.state == OperationState.CANCELLED:
            return (
                ""  # another operation took over; whose workflow that is, is looked at on its own
            )
        ends = [await self._end(run) for run in runs]
        if operation.state in ends or _EITHER in ends:
            return ""
        seen = ", ".join(sorted(set(ends))) or "not to be found"
        return f"it has {operation.state}, but its workflow is {seen}"

    async def _end(self, run: Execution) -> str:
        """The state in which an operation should be whose workflow ended so."""
        if run.status is WorkflowExecutionStatus.CONTINUED_AS_NEW:
            return _EITHER  # delete took over, maybe just after the operation had ended
        if run.status in _BY_SWEEP:
            return OperationState.FAILED
        async with self._asking:
            return await outcome(self._client, run)


_EITHER = "either"


def _runs_of(ended: Iterable[Operation], closed: list[Execution]) -> dict[str, list[Execution]]:
    """Operation id → its closed runs."""
    by_operation: dict[str, list[Execution]] = defaultdict(list)
    deletes: dict[str, list[Execution]] = defaultdict(list)
    for run in closed:
        by_operation[run.operation_id].append(run)
        if run.workflow == LIFECYCLES["delete"].workflow:
            # It may go on in the place of an operation that it interrupted, under that one's attributes.
            deletes[run.server_id].append(run)
    return {
        o.id: deletes[o.server_id]
        if o.lifecycle == "delete"
        else [r for r in by_operation[o.id] if r.workflow == LIFECYCLES[o.lifecycle].workflow]
        for o in ended
    }


def _said(status: WorkflowExecutionStatus | None) -> str:
    return status.name.lower() if status is not None else "not there"
