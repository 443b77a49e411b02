"""Reconcilers: no input but a place, on a schedule or a nudge, idempotent, off live operations' ground."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.contract import (
    ControlActivities,
    DestroyGuest,
    HostActivities,
    HostRef,
    PurgeGuest,
    Tick,
)
from workflows.operation import do


@workflow.defn
class SweepOperations:
    """Start accepted operations that have no workflow; close rows whose workflow has ended."""

    @workflow.run
    async def run(self) -> int:
        """Returns how many rows were put right."""
        swept = await do(ControlActivities.sweep_operations, HostRef(""))
        return len(swept.restarted) + len(swept.closed)


@workflow.defn
class Reconcile:
    """Make the record true again where it can be proven wrong, then look whether everything fits."""

    @workflow.run
    async def run(self) -> int:
        """Returns how many violations there are. Fails, after the audit, when a reconciler could not run."""
        error: ActivityError | None = None
        try:
            await do(ControlActivities.reconcile_record, Tick())
        except ActivityError as failed:
            error = failed
        audited = await do(ControlActivities.audit_cloud, Tick())
        if error is not None:
            raise error
        return sum(audited.violations.values())


@workflow.defn
class SyncHostNics:
    """Make a host's filtering say what the record says; each nudge during a run causes one more round."""

    def __init__(self) -> None:
        self._nudged = True

    @workflow.signal
    def nudge(self) -> None:
        """Rules of this host's ports changed."""
        self._nudged = True

    @workflow.run
    async def run(self, ref: HostRef) -> None:
        """Ends when nothing changed since the last round."""
        while self._nudged:
            self._nudged = False
            nics = await do(ControlActivities.host_nics, ref)
            await do(HostActivities.apply_nics, nics, host=ref.host)


@workflow.defn
class PurgeStaleGuest:
    """Remove a guest that the record has moved on from: deleted, or elsewhere under a later epoch."""

    @workflow.run
    async def run(self, cmd: PurgeGuest) -> None:
        """The caller has positive proof; the host still checks the epoch."""
        destroy = DestroyGuest(cmd.fence, cmd.server_id)
        await do(HostActivities.destroy_guest, destroy, host=cmd.host)
