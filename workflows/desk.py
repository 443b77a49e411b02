"""The operator's desk: where the Web UI finds the verbs for operations whose workflow has ended."""

from __future__ import annotations

from dataclasses import replace

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

from workflows.contract import Accepted, ControlActivities, RetryBuild
from workflows.operation import do

_DETAILS = """### The operator's desk

Send the Update **retry** with the id of a failed create, or of its server, to build the server again from its
stored request:

    {"subject": "<operation or server id>", "order": {"by": "<you>", "reason": "<why>"}}

A build that is *waiting for an operator* takes its verbs at its own workflow, `server:<id>`."""


@workflow.defn
class OperatorDesk:
    """One for the cloud, always there; it costs nothing while nobody comes."""

    @workflow.run
    async def run(self) -> None:
        """Never ends; starts anew when its history has become long."""
        workflow.set_current_details(_DETAILS)
        await workflow.wait_condition(lambda: workflow.info().is_continue_as_new_suggested())
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new()

    @workflow.update
    async def retry(self, cmd: RetryBuild) -> Accepted:
        """Accept and start a build of a server whose create failed; answers the new operation."""
        try:
            named = replace(cmd, operation_id=str(workflow.uuid4()))
            return await do(ControlActivities.retry_build, named)
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError):
                raise ApplicationError(cause.message, type=cause.type) from error
            raise

    @retry.validator
    def _may_retry(self, cmd: RetryBuild) -> None:
        if not cmd.subject:
            raise ValueError("'subject' must be the id of a failed create, or of its server")
