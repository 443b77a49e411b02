"""What may be said to an operation: retry, resume, skip, replace, abort, cancel."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from api.context import Db, TheCloud, allow, release
from api.idempotency import KeyedRoute, keep_early
from api.operations import ShownOperation, get_operation, shown_operation
from api.policy import Caller
from db.operations import Operation
from domain.errors import Conflict
from domain.states import LIVE_OPERATION_STATES, OperationState
from workflows.contract import Order

router = APIRouter(route_class=KeyedRoute)


class Said(BaseModel):
    """Why; kept with the operation's steps."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(default="", max_length=1000)


class Verb(StrEnum):
    """What ends a wait for an operator, apart from ``retry``."""

    RESUME = "resume"
    SKIP = "skip"
    REPLACE = "replace"
    ABORT = "abort"


@router.post("/v1/operations/{operation_id}/retry", status_code=202, response_model=ShownOperation)
def retry_operation(
    operation_id: str,
    request: Request,
    who: Annotated[Caller, allow("operations:retry")],
    db: Db,
    cloud: TheCloud,
    body: Said | None = None,
) -> ShownOperation | Response:
    """A build that waits: undo this host's part and do it again there. A build that has failed: build its
    server again, by a new operation, which is the answer."""
    operation = get_operation(db, who, operation_id)
    if operation.state == OperationState.WAITING_OPERATOR:
        return _order(db, cloud, who, operation, "retry", _asked(request, body))

    def answer(new: Operation) -> Response:
        view = shown_operation(db, who, new).model_dump_json()
        return keep_early(db, Response(view, 202, media_type="application/json"))

    return cloud.launcher.retry(db, who, operation, request.scope["request_id"], answer)


@router.post("/v1/operations/{operation_id}/cancel", status_code=202)
def cancel_operation(
    operation_id: str,
    who: Annotated[Caller, allow("operations:cancel")],
    db: Db,
    cloud: TheCloud,
    body: Said | None = None,
) -> ShownOperation:
    """Stop an operation: what it has done is undone once the hypervisor has let go. ``wait`` for its end."""
    operation = get_operation(db, who, operation_id)
    if operation.state not in LIVE_OPERATION_STATES:
        raise Conflict(f"Operation {operation_id} has ended: it {operation.state}")
    if operation.lifecycle == "delete":
        raise Conflict("A delete cannot be cancelled: half of one is nobody's wish")
    release(db)  # what it waits for writes to the database
    cloud.launcher.cancel(operation)
    return shown_operation(db, who, get_operation(db, who, operation_id))


@router.post("/v1/operations/{operation_id}/{verb}", status_code=202)
def order_operation(
    operation_id: str,
    verb: Verb,
    request: Request,
    who: Annotated[Caller, allow("operations:order")],
    db: Db,
    cloud: TheCloud,
    body: Said | None = None,
) -> ShownOperation:
    """Say what is to become of a build that waits for an operator."""
    operation = get_operation(db, who, operation_id)
    return _order(db, cloud, who, operation, verb, _asked(request, body))


def _asked(request: Request, body: Said | None) -> tuple[str, str]:
    """(id of the order: the same again is the same order; reason)."""
    key = request.headers.get("idempotency-key") or request.scope["request_id"]
    return key, body.reason if body else ""


def _order(
    db: Session,
    cloud: TheCloud,
    who: Caller,
    operation: Operation,
    verb: str,
    asked: tuple[str, str],
) -> ShownOperation:
    key, reason = asked
    if operation.state != OperationState.WAITING_OPERATOR:
        live = operation.state in LIVE_OPERATION_STATES
        now = f"it is {operation.state}" if live else f"it has ended: {operation.state}"
        raise Conflict(f"Operation {operation.id} is not waiting for an operator: {now}")
    if verb not in operation.verbs:
        raise Conflict(
            f"'{verb}' does not fit step '{operation.step}' of operation {operation.id}: it waits for "
            f"{', '.join(operation.verbs)}"
        )
    release(db)  # what it waits for writes to the database
    order = Order(by=who.user_name, reason=reason)
    cloud.launcher.order(operation, verb, order, f"{operation.holds}:{key}")
    return shown_operation(db, who, get_operation(db, who, operation.id))
