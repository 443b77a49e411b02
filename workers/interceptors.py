"""What surrounds every workflow and activity: ids in logs and spans, durations, domain errors as Temporal's."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import structlog
from opentelemetry import trace
from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    HandleSignalInput,
    Interceptor,
    StartActivityInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from domain.errors import DuranovaError
from runtime.metrics import ACTIVITY_SECONDS

_log = structlog.get_logger(__name__)
_HEADER = "duranova-ids"

Ids = dict[str, str]


class Context(Interceptor):
    """The ids of an operation go with its workflow and all its activities, wherever they run: into each
    of their log lines, and onto the activities' spans."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _ActivityContext(next)

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor] | None:
        return _WorkflowContext


class DomainErrors(Interceptor):
    """A domain error leaves an activity as an ApplicationError whose type is the error's kind."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Errors(next)


class _ActivityContext(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        ids = _received(input.headers) | _subject(input.args)
        # Not unbound afterwards: the activity's task ends here, and the SDK's last words are about it.
        structlog.contextvars.bind_contextvars(
            activity=info.activity_type,
            attempt=info.attempt,
            workflow_id=info.workflow_id,
            **ids,
        )
        trace.get_current_span().set_attributes(
            {
                "duranova.activity_attempt": info.attempt,
                "duranova.task_queue": info.task_queue,
                **{f"duranova.{key}": value for key, value in ids.items()},
            }
        )
        return await super().execute_activity(input)


class _Errors(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        started, outcome = perf_counter(), "cancelled"
        try:
            result = await super().execute_activity(input)
            outcome = "success"
            return result
        except DuranovaError as error:
            outcome = error.kind
            _log.warning("activity failed", kind=error.kind, error=error.message)
            raise ApplicationError(
                error.message, *error.details, type=error.kind, non_retryable=not error.retryable
            ) from error
        except Exception:
            outcome = "unexpected"
            _log.exception("activity failed unexpectedly")
            raise
        finally:
            labels = (activity.info().activity_type, outcome)
            ACTIVITY_SECONDS.labels(*labels).observe(perf_counter() - started)


class _WorkflowContext(WorkflowInboundInterceptor):
    """Runs inside the workflow: its ids are those of the ``Ref`` it was started with."""

    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        self._ids: Ids = {}
        super().init(_WithIds(outbound, self._ids))

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        self._ids.update(_subject(input.args))
        structlog.contextvars.bind_contextvars(**self._ids)
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        structlog.contextvars.bind_contextvars(**_subject(input.args))
        await super().handle_signal(input)


class _WithIds(WorkflowOutboundInterceptor):
    def __init__(self, next: WorkflowOutboundInterceptor, ids: Ids) -> None:
        super().__init__(next)
        self._ids = ids

    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:
        self._send(input)
        return super().start_activity(input)

    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:
        self._send(input)
        return super().start_local_activity(input)

    def _send(self, input: StartActivityInput | StartLocalActivityInput) -> None:
        if self._ids:
            payload = workflow.payload_converter().to_payload(self._ids)
            input.headers = {**input.headers, _HEADER: payload}


def _received(headers: Mapping[str, Any]) -> Ids:
    payload = headers.get(_HEADER)
    return activity.payload_converter().from_payload(payload, Ids) if payload is not None else {}


def _subject(args: Any) -> Ids:
    """What a command says about the operation and the server it belongs to."""
    cmd = args[0] if args else None
    ref: Any = getattr(cmd, "ref", cmd)
    if hasattr(ref, "request_id"):  # not by class: a workflow's sandbox may have its own copy of it
        return {
            "operation_id": ref.operation_id,
            "request_id": ref.request_id,
            "server_id": ref.server_id,
            "project_id": ref.project_id,
            "lifecycle": ref.lifecycle,
        }
    server_id = getattr(cmd, "server_id", None) or getattr(
        getattr(cmd, "spec", None), "server_id", None
    )
    return {"server_id": server_id} if server_id else {}
