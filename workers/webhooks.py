"""What makes the workflows of events run: one for each webhook in the settings, and the pruning."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleSpec,
)
from temporalio.common import WorkflowIDConflictPolicy

from domain.ids import CONTROL_QUEUE, webhook_workflow_id
from runtime.settings import Settings
from workflows.contract import WebhookRef

PRUNE_EVERY = timedelta(hours=1)


async def ensure_deliveries(client: Client, settings: Settings) -> None:
    """Start what serves each webhook, unless it runs, and make the schedule of the pruning."""
    for webhook in settings.webhooks:
        await client.start_workflow(
            "DeliverEvents",
            WebhookRef(webhook.name),
            id=webhook_workflow_id(webhook.name),
            task_queue=CONTROL_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            "PruneEvents", id="prune-events", task_queue=CONTROL_QUEUE
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=PRUNE_EVERY)]),
    )
    with suppress(ScheduleAlreadyRunningError):
        await client.create_schedule("prune-events", schedule)
