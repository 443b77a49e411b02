"""DeleteServer: from every state, whatever is broken."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows.contract import (
    Begin,
    ControlActivities,
    DestroyGuest,
    Finish,
    HostActivities,
    Ref,
)
from workflows.operation import FAILED, SUCCEEDED, do, explain, host_did_not_answer


@workflow.defn
class DeleteServer:
    """Remove the guest, then everything the record holds for the server."""

    @workflow.run
    async def run(self, ref: Ref) -> str:
        """Returns the outcome. A host that does not answer is cleaned when it reports again."""
        located = await do(ControlActivities.begin_operation, Begin(ref))
        if located.host is not None:
            destroy = DestroyGuest(located.fence, ref.server_id)
            try:
                await do(HostActivities.destroy_guest, destroy, host=located.host)
            except ActivityError as error:
                if not host_did_not_answer(error):
                    reason = explain(error, located.host)
                    failed = Finish(ref, succeeded=False, error=reason)
                    await do(ControlActivities.finish_operation, failed)
                    return FAILED
                workflow.logger.warning("deleted while its host is away: %s", located.host)
        await do(ControlActivities.finish_operation, Finish(ref, succeeded=True))
        return SUCCEEDED

    @workflow.signal
    def delete(self, ref: Ref) -> None:
        """A further delete; this run is already doing it, and ends every open operation of the server."""
