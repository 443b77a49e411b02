"""The control activities: each hands its command to the part of the record it belongs to."""

from __future__ import annotations

import asyncio

from opentelemetry import trace
from temporalio import activity

from activities.control.placement import Placement
from activities.control.records import Records
from activities.control.sweep import Sweep
from workflows.contract import (
    ApplyNics,
    Begin,
    ClaimHost,
    ControlActivities,
    Finish,
    HostRef,
    Located,
    Placed,
    ReleaseClaim,
    Swept,
    Verdict,
)


class Control(ControlActivities):
    """Implements the contract; database work runs in threads, so the worker's loop stays free."""

    def __init__(self, records: Records, placement: Placement, sweep: Sweep) -> None:
        self._records = records
        self._placement = placement
        self._sweep = sweep

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
        return await self._sweep.run()
