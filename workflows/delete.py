"""DeleteServer: from every state, whatever is broken."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import FailureError

from workflows.contract import (
    Begin,
    ControlActivities,
    DestroyGuest,
    Finish,
    HostActivities,
    Ref,
)
from workflows.operation import FAILED, SUCCEEDED, do, explain, host_did_not_answer, undisturbed


@workflow.defn
class DeleteServer:
    """Remove the guest, then everything the record holds for the server."""

    @workflow.run
    async def run(self, ref: Ref) -> str:
        """Returns the outcome. Not to be cancelled: half a delete is nobody's wish."""
        return await undisturbed(self._story(ref))

    async def _story(self, ref: Ref) -> str:
        """A host that does not answer is cleaned when it reports again."""
        host: str | None = None
        try:
            located = await do(ControlActivities.begin_operation, Begin(ref))
            host = located.host
            if host is not None:
                destroy = DestroyGuest(located.fence, ref.server_id)
                await do(HostActivities.destroy_guest, destroy, host=host)
        except FailureError as error:
            if not host_did_not_answer(error):
                failed = Finish(ref, succeeded=False, error=explain(error, host))
                await do(ControlActivities.finish_operation, failed)
                return FAILED
            workflow.logger.warning("deleted while its host is away: %s", host)
        await do(ControlActivities.finish_operation, Finish(ref, succeeded=True))
        return SUCCEEDED

    @workflow.signal
    def delete(self, ref: Ref) -> None:
        """A further delete; this run is already doing it, and ends every open operation of the server."""
