"""What surrounds every activity: log context, and domain errors as Temporal's, retryable or not."""

from __future__ import annotations

from typing import Any

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from domain.errors import DuranovaError

_log = structlog.get_logger(__name__)


class DomainErrors(Interceptor):
    """A domain error leaves an activity as an ApplicationError whose type is the error's kind."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Inbound(next)


class _Inbound(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        context = {
            "activity": info.activity_type,
            "attempt": info.attempt,
            "workflow_id": info.workflow_id,
            **_ids(input.args),
        }
        with structlog.contextvars.bound_contextvars(**context):
            try:
                return await super().execute_activity(input)
            except DuranovaError as error:
                _log.warning("activity failed", kind=error.kind, error=error.message)
                raise ApplicationError(
                    error.message, type=error.kind, non_retryable=not error.retryable
                ) from error
            except Exception:
                _log.exception("activity failed unexpectedly")
                raise


def _ids(args: Any) -> dict[str, str]:
    """Operation and request ids, where the command names them."""
    ref = getattr(args[0], "ref", None) if args else None
    if ref is not None:
        return {"operation_id": ref.operation_id, "request_id": ref.request_id}
    fence = getattr(args[0], "fence", None) if args else None
    return {"operation_id": fence.operation_id} if fence is not None else {}
