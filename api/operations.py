"""/operations/v1: every accepted change as an operation: list, show, wait; and why a server is where it is."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool

from api.context import Db, TheCloud, allow
from api.policy import Caller
from db.operations import Decision, Operation, OperationEvent
from db.servers import Server
from db.session import reading
from domain.errors import BadRequest, NotFound
from domain.states import LIVE_OPERATION_STATES

router = APIRouter()
MAX_WAIT_S = 60.0
"""The longest a client may wait in one request; it asks again for more."""
_LOOK_EVERY_S = 0.25
Reader = Annotated[Caller, allow("operations:read")]


class Step(BaseModel):
    """One event of an operation."""

    model_config = ConfigDict(from_attributes=True)
    name: str
    host: str | None
    started_at: datetime
    finished_at: datetime | None
    result: str | None
    details: str | None


class OperationView(BaseModel):
    """One operation; ``steps`` only when one is shown alone."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    action: str
    server_id: str
    project_id: str
    user_id: str
    request_id: str
    state: str
    step: str | None
    attempt: int
    percent: int | None
    host: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None


class ShownOperation(OperationView):
    """One operation with its steps."""

    steps: list[Step]


class OperationList(BaseModel):
    """A page of operations, newest first; ``next`` is a path, if there is more."""

    operations: list[OperationView]
    next: str | None


class Placement(BaseModel):
    """One placement decision."""

    model_config = ConfigDict(from_attributes=True)
    operation_id: str
    attempt: int
    host: str | None
    summary: str
    weights: dict[str, Any]
    refusals: dict[str, str]
    created_at: datetime


class Placements(BaseModel):
    """Every decision about one server, newest first."""

    server_id: str
    placements: list[Placement]


@router.get("/v1")
def version() -> dict[str, Any]:
    """The version document."""
    return {"version": {"id": "v1", "status": "CURRENT", "links": []}}


@router.get("/v1/operations")
def list_operations(
    who: Reader,
    db: Db,
    server_id: str | None = None,
    state: str | None = None,
    action: str | None = None,
    marker: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> OperationList:
    """The caller's project's operations (an admin's: everybody's), newest first."""
    query = select(Operation).order_by(col(Operation.created_at).desc(), col(Operation.id).desc())
    if not who.is_admin:
        query = query.where(Operation.project_id == who.project_id)
    for column, value in (("server_id", server_id), ("state", state), ("action", action)):
        if value is not None:
            query = query.where(getattr(Operation, column) == value)
    if marker is not None:
        last = _get(db, who, marker, BadRequest)
        earlier = col(Operation.created_at) < last.created_at
        same = (col(Operation.created_at) == last.created_at) & (col(Operation.id) < last.id)
        query = query.where(earlier | same)
    rows = list(db.exec(query.limit(limit + 1)))
    shown = [OperationView.model_validate(r) for r in rows[:limit]]
    more = f"/operations/v1/operations?limit={limit}&marker={shown[-1].id}"
    return OperationList(operations=shown, next=more if len(rows) > limit else None)


@router.get("/v1/operations/{operation_id}")
def show_operation(operation_id: str, who: Reader, db: Db) -> ShownOperation:
    """One operation with its steps."""
    return _shown(db, _get(db, who, operation_id))


@router.get("/v1/operations/{operation_id}/wait")
async def wait_for_operation(
    operation_id: str,
    who: Reader,
    cloud: TheCloud,
    request: Request,
    timeout: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 30.0,  # noqa: ASYNC109  # the API's word
) -> ShownOperation:
    """The operation once it has ended, or as it is after ``timeout`` seconds."""

    def look() -> ShownOperation:
        with reading(cloud.engine) as session:
            return _shown(session, _get(session, who, operation_id))

    deadline = asyncio.get_running_loop().time() + timeout
    shown = await run_in_threadpool(look)
    while shown.state in LIVE_OPERATION_STATES and not await request.is_disconnected():
        if asyncio.get_running_loop().time() >= deadline:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
        shown = await run_in_threadpool(look)
    return shown


@router.get("/v1/servers/{server_id}/placement")
def explain_placement(
    server_id: str, who: Annotated[Caller, allow("placement:explain")], db: Db
) -> Placements:
    """Why this host, why not each other one. Hosts are named to admins only."""
    server = db.get(Server, server_id)
    if server is None or (server.project_id != who.project_id and not who.is_admin):
        raise NotFound(f"Instance {server_id} could not be found.")
    query = select(Decision).where(Decision.server_id == server_id)
    rows = db.exec(query.order_by(col(Decision.id).desc()))
    decisions = [Placement.model_validate(r) for r in rows]
    if not who.is_admin:
        decisions = [d.model_copy(update=_FOR_TENANTS) for d in decisions]
    return Placements(server_id=server_id, placements=decisions)


_FOR_TENANTS: dict[str, Any] = {"host": None, "weights": {}, "refusals": {}}


def _get(
    session: Session,
    who: Caller,
    operation_id: str,
    missing: type[NotFound | BadRequest] = NotFound,
) -> Operation:
    operation = session.get(Operation, operation_id)
    if operation is None or (operation.project_id != who.project_id and not who.is_admin):
        raise missing(f"Operation {operation_id} could not be found.")
    return operation


def _shown(session: Session, operation: Operation) -> ShownOperation:
    query = select(OperationEvent).where(OperationEvent.operation_id == operation.id)
    steps = [Step.model_validate(e) for e in session.exec(query.order_by(col(OperationEvent.id)))]
    view = OperationView.model_validate(operation)
    return ShownOperation(**view.model_dump(), steps=steps)
