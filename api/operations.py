"""/operations/v1: every accepted change as an operation: list, show, wait; and why a server is where it is."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool

from activities.control.retries import may_retry
from api.context import Db, TheCloud, allow
from api.idempotency import KeyedRoute
from api.policy import Caller, authorize
from db.operations import SCHEDULE_EVENT, Decision, Operation, OperationEvent
from db.paging import keyset
from db.servers import Server
from db.session import reading
from domain.errors import BadRequest, NotFound
from domain.states import LIVE_OPERATION_STATES, OperationState

router = APIRouter(route_class=KeyedRoute)
MAX_WAIT_S = 60.0
"""The longest a client may wait in one request; it asks again for more."""
_LOOK_EVERY_S = 0.25
_MOVING = (OperationState.ACCEPTED, OperationState.RUNNING)
"""States in which there is something to wait for: a held operation waits for somebody, too."""
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
    retry_of: str | None
    """The failed operation that this one does again."""
    deadline_at: datetime | None
    """When the wait for an operator is given up."""
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None


class ShownOperation(OperationView):
    """One operation with its steps."""

    steps: list[Step]
    verbs: list[str]
    """What ``POST …/operations/{id}/{verb}`` would be taken now."""


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
def version(cloud: TheCloud) -> dict[str, Any]:
    """The version document."""
    url = f"{cloud.settings.public_url.rstrip('/')}/operations/v1"
    links = [{"rel": "self", "href": url}]
    return {"version": {"id": "v1", "status": "CURRENT", "links": links}}


class ListOperations(BaseModel):
    """Filters of a list; all that are given must hold."""

    model_config = ConfigDict(extra="forbid")
    server_id: str | None = None
    state: list[OperationState] = Field(default_factory=list)
    """Any of these."""
    action: str | None = None
    request_id: str | None = None
    host: str | None = None
    """For admins."""
    project_id: str | None = None
    """For admins."""
    created_since: AwareDatetime | None = None
    created_before: AwareDatetime | None = None
    marker: str | None = None
    limit: int = Field(default=100, ge=1, le=1000)

    def matching(self) -> Any:
        """The statement without order and page."""
        statement: Any = select(Operation)
        for column in ("server_id", "action", "request_id", "host", "project_id"):
            if (value := getattr(self, column)) is not None:
                statement = statement.where(getattr(Operation, column) == value)
        if self.state:
            statement = statement.where(col(Operation.state).in_(self.state))
        if self.created_since is not None:
            statement = statement.where(col(Operation.created_at) >= self.created_since)
        if self.created_before is not None:
            statement = statement.where(col(Operation.created_at) < self.created_before)
        return statement

    def following(self, marker: str) -> str:
        """The path of the page behind this one."""
        given = self.model_dump(mode="json", exclude_unset=True) | {"marker": marker}
        return f"/operations/v1/operations?{urlencode(given, doseq=True)}"


@router.get("/v1/operations")
def list_operations(
    query: Annotated[ListOperations, Query()], who: Reader, db: Db
) -> OperationList:
    """The caller's project's operations (an admin's: everybody's), newest first."""
    if query.host is not None or query.project_id is not None:
        authorize(who, "operations:everywhere")
    statement = query.matching()
    if not who.is_admin:
        statement = statement.where(Operation.project_id == who.project_id)
    after = None
    if query.marker is not None:
        last = get_operation(db, who, query.marker, BadRequest)
        after = (last.created_at, last.id)
    order = [(col(Operation.created_at), True), (col(Operation.id), True)]
    rows = list(db.scalars(keyset(statement, order, after, query.limit + 1)))
    shown = [_view(who, r) for r in rows[: query.limit]]
    more = query.following(shown[-1].id) if len(rows) > query.limit else None
    return OperationList(operations=shown, next=more)


@router.get("/v1/operations/{operation_id}")
def show_operation(operation_id: str, who: Reader, db: Db) -> ShownOperation:
    """One operation with its steps."""
    return shown_operation(db, who, get_operation(db, who, operation_id))


@router.get("/v1/operations/{operation_id}/wait")
async def wait_for_operation(
    operation_id: str,
    who: Reader,
    cloud: TheCloud,
    request: Request,
    timeout: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 30.0,  # noqa: ASYNC109  # the API's word
) -> ShownOperation:
    """The operation once it has ended or is held, or as it is after ``timeout`` seconds."""

    def look() -> ShownOperation:
        with reading(cloud.engine) as session:
            return shown_operation(session, who, get_operation(session, who, operation_id))

    deadline = asyncio.get_running_loop().time() + timeout
    shown = await run_in_threadpool(look)
    while shown.state in _MOVING and not await request.is_disconnected():
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


def get_operation(
    session: Session,
    who: Caller,
    operation_id: str,
    missing: type[NotFound | BadRequest] = NotFound,
) -> Operation:
    """The operation, if the caller may see it; else ``missing``."""
    operation = session.get(Operation, operation_id)
    if operation is None or (operation.project_id != who.project_id and not who.is_admin):
        raise missing(f"Operation {operation_id} could not be found.")
    return operation


def shown_operation(session: Session, who: Caller, operation: Operation) -> ShownOperation:
    """The operation as it is now, with its steps. Hosts are named to admins only."""
    session.refresh(operation)
    query = select(OperationEvent).where(OperationEvent.operation_id == operation.id)
    steps = [Step.model_validate(e) for e in session.exec(query.order_by(col(OperationEvent.id)))]
    if not who.is_admin:
        steps = [step.model_copy(update=_step_for_tenants(step)) for step in steps]
    view = _view(who, operation)
    return ShownOperation(**view.model_dump(), steps=steps, verbs=_verbs(session, operation))


def _step_for_tenants(step: Step) -> dict[str, Any]:
    # The summary of a decision names hosts.
    decision = step.name == SCHEDULE_EVENT and step.result == "Success"
    return {"host": None, "details": None if decision else step.details}


def _view(who: Caller, operation: Operation) -> OperationView:
    view = OperationView.model_validate(operation)
    return view if who.is_admin else view.model_copy(update={"host": None})


def _verbs(session: Session, operation: Operation) -> list[str]:
    if operation.state in LIVE_OPERATION_STATES:
        return [*operation.verbs, *(["cancel"] if operation.lifecycle != "delete" else [])]
    return ["retry"] if may_retry(session, operation) else []
