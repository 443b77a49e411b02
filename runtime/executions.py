"""The workflows of servers as Temporal sees them, for the audit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus

from domain.ids import server_workflow_id
from runtime.temporal import OPERATION

_RPC_TIMEOUT = timedelta(seconds=10)
_PREFIX = server_workflow_id("")


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a server's workflow."""

    server_id: str
    run_id: str
    workflow: str
    """Its type."""
    operation_id: str
    """Of the operation that the run, or the one it continues, was started for."""
    status: WorkflowExecutionStatus | None


async def running_executions(
    client: Client, workflows: Iterable[str], limit: int
) -> list[Execution]:
    """The running workflows of these types, as far as visibility knows: it is some moments late."""
    return await _listed(client, f"{_of(workflows)} AND ExecutionStatus = 'Running'", limit)


async def closed_executions(
    client: Client, workflows: Iterable[str], since: datetime, limit: int
) -> list[Execution]:
    """The runs of these types that closed since then, newest first, as far as visibility knows."""
    query = f"{_of(workflows)} AND CloseTime >= '{since.isoformat()}'"
    return await _listed(client, query, limit)


async def outcome(client: Client, execution: Execution) -> str:
    """What a completed run returned."""
    handle = client.get_workflow_handle(
        server_workflow_id(execution.server_id), run_id=execution.run_id, result_type=str
    )
    returned: str = await handle.result(follow_runs=False, rpc_timeout=_RPC_TIMEOUT)
    return returned


def _of(workflows: Iterable[str]) -> str:
    names = ", ".join(f"'{name}'" for name in sorted(set(workflows)))
    return f"WorkflowType IN ({names})"


async def _listed(client: Client, query: str, limit: int) -> list[Execution]:
    found = client.list_workflows(query, limit=limit, rpc_timeout=_RPC_TIMEOUT)
    return [_execution(each) async for each in found if each.id.startswith(_PREFIX)]


def _execution(found: WorkflowExecution) -> Execution:
    return Execution(
        server_id=found.id.removeprefix(_PREFIX),
        run_id=found.run_id,
        workflow=found.workflow_type,
        operation_id=found.typed_search_attributes.get(OPERATION) or "",
        status=found.status,
    )
