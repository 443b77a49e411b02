"""What an operation costs Temporal, counted: each state transition is a write of the server's, and each
dispatch some tens of milliseconds that a user waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus

from domain.ids import server_workflow_id
from tests.operations.conftest import Desk

pytestmark = pytest.mark.temporal

MOST_BYTES = 10_000
"""Of a history; a create's is the largest, for it holds what the guest is."""


@dataclass(frozen=True)
class Cost:
    """Of one operation whose steps all succeed at once."""

    events: int
    transitions: int
    """Of the workflow's state."""
    remote: int = 1
    """Activities that were dispatched: to a host."""
    local: int = 2
    tasks: int = 2
    """Workflow tasks."""


EAGER = Cost(events=13, transitions=6)
"""The fewest that two local activities around one on a host can take: the start brings the first workflow
task with it."""
BY_SIGNAL = Cost(events=14, transitions=7)
"""A delete may meet a busy server, so it comes as a signal, and its first task is dispatched."""
STORY: list[tuple[str, dict[str, Any] | None, str, Cost]] = [
    ("stop", {"os-stop": None}, "SHUTOFF", EAGER),
    ("start", {"os-start": None}, "ACTIVE", EAGER),
    ("reboot", {"reboot": {"type": "SOFT"}}, "ACTIVE", EAGER),
    ("reboot hard", {"reboot": {"type": "HARD"}}, "ACTIVE", EAGER),
    ("pause", {"pause": None}, "PAUSED", EAGER),
    ("unpause", {"unpause": None}, "ACTIVE", EAGER),
    ("suspend", {"suspend": None}, "SUSPENDED", EAGER),
    ("resume", {"resume": None}, "ACTIVE", EAGER),
    ("delete", None, "DELETED", BY_SIGNAL),
]
"""What happens to a server one after another: (name, action or delete, status after it, cost)."""


async def test_no_operation_costs_more_than_it_must(desk: Desk) -> None:
    stack = desk.stack
    server_id = (await stack.boot("counted")).json()["server"]["id"]
    costs = {"create": await _cost(desk, server_id)}
    for name, action, status, _ in STORY:
        url, headers = f"/compute/v2.1/servers/{server_id}", await stack.headers()
        if action is None:
            answer = await stack.client.delete(url, headers=headers)
        else:
            answer = await stack.client.post(f"{url}/action", json=action, headers=headers)
        assert answer.status_code in (202, 204), answer.text
        costs[name] = await _cost(desk, server_id)
        assert (await stack.show(server_id))["status"] == status
    assert costs == {"create": EAGER} | {name: cost for name, *_, cost in STORY}


async def _cost(desk: Desk, server_id: str) -> Cost:
    """Of the newest run of the server's workflow, once it has closed."""
    handle = desk.stack.temporal.get_workflow_handle(server_workflow_id(server_id))
    async with asyncio.timeout(60):
        await handle.result()
        described = await handle.describe()
    assert described.status is WorkflowExecutionStatus.COMPLETED
    info = described.raw_description.workflow_execution_info
    assert info.history_size_bytes <= MOST_BYTES
    counts = Counter(event.event_type for event in (await handle.fetch_history()).events)
    return Cost(
        events=info.history_length,
        transitions=info.state_transition_count,
        remote=counts[EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED],
        local=counts[EventType.EVENT_TYPE_MARKER_RECORDED],
        tasks=counts[EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED],
    )
