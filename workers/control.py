"""The control worker: every workflow, the control activities, and the schedules."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import timedelta

from sqlalchemy import Engine
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
)
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.control.control import Control
from activities.control.holds import Holds
from activities.control.placement import Placement
from activities.control.reconcile import Reconcilers
from activities.control.records import Records
from activities.control.retries import Retries
from activities.control.sweep import Sweep
from activities.control.webhooks import Webhooks
from domain.ids import CONTROL_QUEUE
from runtime.settings import Settings
from runtime.temporal import ensure_desk
from workers.interceptors import Context, DomainErrors
from workers.keeping import kept
from workers.registry import implemented
from workflows.catalog import WORKFLOWS
from workflows.contract import ControlActivities

SCHEDULES = {
    "reconcile": ("Reconcile", timedelta(seconds=60)),
    "sweep-operations": ("SweepOperations", timedelta(seconds=30)),
}
"""Schedule → its workflow, and how often that runs. Few, for each run costs some 60 ms of a core."""
_LONGEST_ROUND = timedelta(minutes=30)
"""A run of a schedule that has been lost must not keep the next ones from starting for ever."""
# Our workflow modules import nothing but the pure core (an import rule sees to that), so the sandbox may
# share them: without this each workflow instance would import them again.
SANDBOX = SandboxedWorkflowRunner(
    restrictions=SandboxRestrictions.default.with_passthrough_modules("domain", "workflows")
)
"""Refuses a workflow what is not deterministic. The tests run every workflow in it; a cloud does not, for
it is half of what a workflow costs (docs/adr/0020)."""


def control_activities(client: Client, engine: Engine, settings: Settings) -> Control:
    """The control activities over this database."""
    records = Records(engine, settings)
    return Control(
        records,
        Placement(engine, settings),
        Holds(engine),
        Retries(client, engine),
        Webhooks(engine, settings),
        Reconcilers(client, engine, settings, Sweep(client, engine, records)),
    )


def control_worker(
    client: Client, engine: Engine, settings: Settings, runner: WorkflowRunner | None = None
) -> AbstractAsyncContextManager[None]:
    """Run a worker beside the database inside the block; start as many as wanted, anywhere.

    ``runner`` runs the workflows instead of the one without a sandbox.
    """
    return kept(lambda: _worker(client, engine, settings, runner or UnsandboxedWorkflowRunner()))


def _worker(client: Client, engine: Engine, settings: Settings, runner: WorkflowRunner) -> Worker:
    return Worker(
        client,
        task_queue=CONTROL_QUEUE,
        workflows=WORKFLOWS,
        activities=implemented(control_activities(client, engine, settings), ControlActivities),
        interceptors=[Context(), DomainErrors()],
        workflow_runner=runner,
        # After a control worker died, its cached workflows move on this quickly (the default is 10 s).
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
        graceful_shutdown_timeout=timedelta(seconds=10),
        max_concurrent_workflow_tasks=200,
    )


async def ensure_standing_work(client: Client, *, run_now: bool = True) -> None:
    """What is there once in a namespace: the operator's desk, and the reconcilers' schedules.

    ``run_now`` runs them at once; those that were missing are in any case.
    """
    await ensure_desk(client)
    for name, (workflow, every) in SCHEDULES.items():
        schedule = Schedule(
            action=ScheduleActionStartWorkflow(
                workflow, id=name, task_queue=CONTROL_QUEUE, execution_timeout=_LONGEST_ROUND
            ),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP),
        )
        try:
            await client.create_schedule(name, schedule, trigger_immediately=True)
        except ScheduleAlreadyRunningError:
            if run_now:
                await client.get_schedule_handle(name).trigger()
