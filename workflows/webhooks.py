"""Events out: each webhook is served by a workflow of its own, so one that is down delays no other."""

from __future__ import annotations

from temporalio import workflow

from workflows.contract import ControlActivities, Prune, WebhookRef
from workflows.operation import do

TURNS = 200
"""Turns of one run; then it continues as new, so that its history stays short."""
_BITE = 10_000


@workflow.defn
class DeliverEvents:
    """Hand one webhook every event, for as long as it is configured."""

    @workflow.run
    async def run(self, ref: WebhookRef) -> None:
        """Ends when a worker that takes the next turn has no such webhook in its settings."""
        for _ in range(TURNS):
            turn = await do(ControlActivities.deliver_events, ref)
            if not turn.configured:
                return
        workflow.continue_as_new(ref)


@workflow.defn
class PruneEvents:
    """Delete events that are older than they are kept."""

    @workflow.run
    async def run(self) -> int:
        """Returns how many."""
        total, found = 0, _BITE
        while found == _BITE:
            found = (await do(ControlActivities.prune_events, Prune(_BITE))).count
            total += found
        return total
