"""os-instance-actions: what was asked of a server, and how each step went."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from api.compute.server_query import Instant, check_span
from api.compute.server_views import host_id, micros
from api.compute.servers import scope_of
from api.context import Db, allow
from api.history import pages_instance_actions, reads_actions_of_deleted, shows_events_to_all
from api.microversion import Route, View, since
from api.paging import Link, Paged, TheLinks
from api.policy import Caller, permits
from db.operations import Operation, OperationEvent, events_of, find_operation, list_operations
from db.servers import Server, get_server
from domain.errors import NotFound
from domain.states import OperationState

router = APIRouter(route_class=Route)


class ListActions(Paged):
    """The parameters of the list; before 2.58 it knows none."""

    limit: Annotated[int | None, since("2.58"), Field(ge=0)] = None
    marker: Annotated[str | None, since("2.58")] = None
    changes_since: Annotated[Instant | None, since("2.58"), Field(alias="changes-since")] = None
    changes_before: Annotated[Instant | None, since("2.66"), Field(alias="changes-before")] = None


class EventView(View):
    """One step of an action."""

    event: str
    start_time: str | None
    finish_time: str | None
    result: str | None
    traceback: str | None = None
    host: Annotated[str | None, since("2.62")] = None
    host_id: Annotated[str, since("2.62"), Field(alias="hostId")] = ""
    details: Annotated[str | None, since("2.84")] = None


class ActionView(View):
    """One accepted request on a server."""

    action: str
    instance_uuid: str
    request_id: str
    user_id: str
    project_id: str
    start_time: str | None
    message: str | None
    updated_at: Annotated[str | None, since("2.58")] = None
    events: list[EventView] | None = None


class ActionList(View):
    """A page of actions, newest first."""

    actions: Annotated[list[ActionView], Field(alias="instanceActions")]
    links: list[Link] | None = None


class ShownAction(View):
    """One action with its events."""

    action: Annotated[ActionView, Field(alias="instanceAction")]


@router.get("/v2.1/servers/{server_id}/os-instance-actions", response_model_exclude_unset=True)
def list_instance_actions(
    server_id: str,
    query: Annotated[ListActions, Query()],
    who: Annotated[Caller, allow("servers:instance_actions")],
    db: Db,
    links: TheLinks,
) -> ActionList:
    """What was asked of the server."""
    server = _server(db, server_id, who)
    earliest: Any = query.changes_since
    latest: Any = query.changes_before
    check_span(earliest, latest)
    found = list_operations(
        db,
        server.id,
        limit=query.page_size,
        marker=query.marker,
        changed_since=earliest,
        changed_before=latest,
    )
    path = f"servers/{server.id}/os-instance-actions"
    more = links.next(path, query, [o.request_id for o in found])
    shown = [ActionView(**_fields(operation)) for operation in found]
    following = more if pages_instance_actions() else None
    return ActionList(actions=shown, **({"links": following} if following else {}))


@router.get(
    "/v2.1/servers/{server_id}/os-instance-actions/{request_id}",
    response_model_exclude_unset=True,
)
def show_instance_action(
    server_id: str,
    request_id: str,
    who: Annotated[Caller, allow("servers:instance_actions")],
    db: Db,
) -> ShownAction:
    """One request and its steps."""
    server = _server(db, server_id, who)
    operation = find_operation(db, server.id, request_id)
    if operation is None:
        raise NotFound(f"Action {request_id:.64} not found")
    fields = _fields(operation)
    insider = permits(who, "servers:instance_actions:events")
    if insider or shows_events_to_all():
        events = events_of(db, operation.id)
        fields["events"] = [_event(e, operation.project_id, insider=insider) for e in events]
    return ShownAction(action=ActionView(**fields))


def _server(db: Db, server_id: str, who: Caller) -> Server:
    return get_server(db, server_id, scope_of(who), deleted=reads_actions_of_deleted())


def _fields(operation: Operation) -> dict[str, Any]:
    return {
        "action": operation.action,
        "instance_uuid": operation.server_id,
        "request_id": operation.request_id,
        "user_id": operation.user_id,
        "project_id": operation.project_id,
        "start_time": micros(operation.created_at),
        "message": "Error" if operation.state == OperationState.FAILED else None,
        "updated_at": micros(operation.updated_at),
    }


def _event(event: OperationEvent, project_id: str, *, insider: bool) -> EventView:
    secret = {"traceback": event.details, "host": event.host} if insider else {}
    return EventView(
        event=event.name,
        start_time=micros(event.started_at),
        finish_time=micros(event.finished_at),
        result=event.result,
        host_id=host_id(project_id, event.host),
        details=event.details,
        **secret,
    )
