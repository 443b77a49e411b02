"""The control activities: each hands its command to the part of the record it belongs to."""

from __future__ import annotations

import asyncio

from opentelemetry import trace
from temporalio import activity

from activities.control.holds import Holds
from activities.control.placement import Placement
from activities.control.reconcile import Reconcilers
from activities.control.records import Records
from activities.control.retries import Retries
from activities.control.webhooks import Webhooks
from workflows.contract import (
    Accepted,
    ApplyNics,
    Attempt,
    Audited,
    Begin,
    ClaimHost,
    ControlActivities,
    Failure,
    Finish,
    GoOn,
    Hold,
    HostRef,
    Located,
    Placed,
    Prune,
    Pruned,
    Reconciled,
    ReleaseClaim,
    RetryBuild,
    Swept,
    Tick,
    Turn,
    Verdict,
    WebhookRef,
)


class Control(ControlActivities):
    """Implements the contract; database work runs in threads, so the worker's loop stays free."""

    def __init__(
        self,
        records: Records,
        placement: Placement,
        holds: Holds,
        retries: Retries,
        webhooks: Webhooks,
        reconcilers: Reconcilers,
    ) -> None:
        self._records = records
        self._reconcilers = reconcilers
        self._placement = placement
        self._holds = holds
        self._retries = retries
        self._webhooks = webhooks

    @activity.defn
    async def claim_host(self, cmd: ClaimHost) -> Placed:
        placed = await asyncio.to_thread(self._placement.claim, cmd)
        trace.get_current_span().set_attributes(
            {"duranova.host": placed.host, "duranova.attempt": cmd.attempt}
        )
        return placed

    @activity.defn
    async def release_claim(self, cmd: ReleaseClaim) -> None:
        await asyncio.to_thread(self._placement.release, cmd)

    @activity.defn
    async def renew_claim(self, cmd: Attempt) -> Placed:
        return await asyncio.to_thread(self._placement.renew, cmd)

    @activity.defn
    async def record_failure(self, cmd: Failure) -> None:
        await asyncio.to_thread(self._holds.record_failure, cmd)

    @activity.defn
    async def hold_operation(self, cmd: Hold) -> None:
        await asyncio.to_thread(self._holds.hold, cmd)

    @activity.defn
    async def release_hold(self, cmd: GoOn) -> None:
        await asyncio.to_thread(self._holds.go_on, cmd)

    @activity.defn
    async def retry_build(self, cmd: RetryBuild) -> Accepted:
        return await self._retries.retry(cmd)

    @activity.defn
    async def begin_operation(self, cmd: Begin) -> Located:
        return await asyncio.to_thread(self._records.begin, cmd)

    @activity.defn
    async def may_unwind(self, cmd: Begin) -> Verdict:
        return await asyncio.to_thread(self._records.may_unwind, cmd)

    @activity.defn
    async def finish_operation(self, cmd: Finish) -> None:
        await asyncio.to_thread(self._records.finish, cmd)

    @activity.defn
    async def host_nics(self, cmd: HostRef) -> ApplyNics:
        return await asyncio.to_thread(self._records.host_nics, cmd.host)

    @activity.defn
    async def sweep_operations(self, _cmd: HostRef) -> Swept:
        return await self._reconcilers.sweep()

    @activity.defn
    async def reconcile_record(self, _cmd: Tick) -> Reconciled:
        return await self._reconcilers.reconcile()

    @activity.defn
    async def audit_cloud(self, _cmd: Tick) -> Audited:
        return await self._reconcilers.audit()

    @activity.defn
    async def deliver_events(self, cmd: WebhookRef) -> Turn:
        return await self._webhooks.deliver(cmd.name)

    @activity.defn
    async def prune_events(self, cmd: Prune) -> Pruned:
        return Pruned(await asyncio.to_thread(self._webhooks.prune, cmd.at_most))
