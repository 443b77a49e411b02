"""PowerServer: the lifecycles that are one call to the hypervisor."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import FailureError

from workflows.contract import (
    Begin,
    ChangePower,
    ControlActivities,
    Finish,
    HostActivities,
    Ref,
)
from workflows.operation import (
    FAILED,
    SUCCEEDED,
    Operation,
    do,
    explain,
    reraise_cancel,
    undisturbed,
)


@workflow.defn
class PowerServer(Operation):
    """Start, stop, reboot, pause, unpause, suspend or resume, as ``ref.lifecycle`` says.

    A failure leaves the server in the state it had; the operation carries the cause.
    """

    @workflow.run
    async def run(self, ref: Ref) -> str:
        """Returns the outcome."""
        return await self.carry_out(ref, self._story(ref))

    async def _story(self, ref: Ref) -> str:
        host: str | None = None
        try:
            located = await do(ControlActivities.begin_operation, Begin(ref))
            host = located.host
            if located.host is None or located.spec is None:
                return await self._failed(ref, "The server is on no host")
            change = ChangePower(ref.lifecycle, located.spec, float(located.input["timeout_s"]))
            guest = await do(HostActivities.change_power, change, host=located.host)
        except FailureError as error:
            reraise_cancel(error)
            return await self._failed(ref, explain(error, host))
        done = Finish(ref, succeeded=True, guest=guest)
        await undisturbed(do(ControlActivities.finish_operation, done))
        return SUCCEEDED

    async def _failed(self, ref: Ref, reason: str) -> str:
        await do(ControlActivities.finish_operation, Finish(ref, succeeded=False, error=reason))
        return FAILED
