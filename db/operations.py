"""Operations (Nova's instance actions), their events, and the placement decisions they took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Index, bindparam, func, insert, inspect, union
from sqlalchemy.event import listens_for
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import id_column, instant, json_column, stamped
from db.events import Event, emit
from db.paging import keyset
from db.servers import Server, alive
from db.session import now
from domain.errors import BadRequest
from domain.events import EventType
from domain.guest import StageTaken
from domain.ids import SYSTEM_USER
from domain.lifecycle import LIFECYCLES
from domain.states import LIVE_OPERATION_STATES, OperationState, VmState


class Operation(SQLModel, table=True):
    """One accepted request on one server, from accept to end."""

    __tablename__ = "operation"
    __table_args__ = (
        # covers the audit's look at whose operations there are
        Index("operation_of_server", "server_id", "project_id"),
        Index("operation_finished", "finished_at"),
    )
    id: str = id_column()
    request_id: str = Field(max_length=64, index=True)
    action: str = Field(max_length=64)
    """The instance action's name (``domain.lifecycle``)."""
    lifecycle: str = Field(max_length=64)
    """The key in ``domain.lifecycle.LIFECYCLES``."""
    server_id: str = Field(foreign_key="server.id", max_length=36)
    project_id: str = Field(max_length=36, index=True)
    user_id: str = Field(max_length=36)
    state: str = Field(default="accepted", max_length=24, index=True)
    step: str | None = Field(default=None, max_length=64)
    attempt: int = 0
    """Hosts tried so far."""
    percent: int | None = None
    host: str | None = Field(default=None, max_length=255)
    input: dict[str, Any] = json_column()
    """The request, as far as the server row does not hold it."""
    error: str | None = None
    """Why it failed, or what it waits for an operator with."""
    retry_of: str | None = Field(default=None, max_length=36)
    """The failed operation that this one does again."""
    holds: int = 0
    """How often it has waited for an operator."""
    verbs: list[str] = json_column(list)
    """What an operator may say now."""
    deadline_at: datetime | None = instant()
    """When the wait for an operator is given up."""
    created_at: datetime = stamped()
    started_at: datetime | None = instant()
    updated_at: datetime = stamped()
    finished_at: datetime | None = instant()


BUSY = select(Operation.server_id).where(col(Operation.state).in_(LIVE_OPERATION_STATES))
"""Ids of the servers that live operations own."""
IN_TRANSITION = union(
    select(Server.id).where(alive(), col(Server.task_state).is_not(None)),
    select(Server.id).where(alive(), Server.vm_state == VmState.BUILDING),
)
"""Ids of the servers that something seems to be done to: each half has an index of no others."""


def idle() -> Any:
    """In a query on servers: no live operation owns it."""
    return col(Server.id).not_in(BUSY)


class OperationEvent(SQLModel, table=True):
    """One step of an operation (Nova's instance action event)."""

    __tablename__ = "operation_event"
    id: int | None = Field(default=None, primary_key=True)
    operation_id: str = Field(foreign_key="operation.id", max_length=36, index=True)
    name: str = Field(max_length=128)
    """Nova's event name where it has one, e.g. ``compute__do_build_and_run_instance``."""
    host: str | None = Field(default=None, max_length=255)
    started_at: datetime = stamped()
    finished_at: datetime | None = instant()
    result: str | None = Field(default=None, max_length=16)
    """``Success`` or ``Error``."""
    details: str | None = None


class Decision(SQLModel, table=True):
    """Why this host, why not each other one: one placement decision of one operation."""

    __tablename__ = "decision"
    id: int | None = Field(default=None, primary_key=True)
    operation_id: str = Field(foreign_key="operation.id", max_length=36, index=True)
    server_id: str = Field(max_length=36, index=True)
    attempt: int
    host: str | None = Field(default=None, max_length=255)
    """The chosen host; None when no host passed."""
    weights: dict[str, Any] = json_column()
    """host → {weigher: normalised × multiplier, ..., "total": sum} of the hosts that passed."""
    refusals: dict[str, str] = json_column()
    """host → "Filter: reason" for the others."""
    counts: dict[str, Any] = json_column()
    """{"hosts": looked at, "passed": n, "refused": {filter: n}}; the two maps above name the first 100."""
    summary: str = ""
    """The sentence a fault shows."""
    created_at: datetime = stamped()


SCHEDULE_EVENT = "schedule_instances"
"""The event of a placement decision."""
_EVENTS = {
    "create": "compute__do_build_and_run_instance",
    "delete": "compute_terminate_instance",
    "pause": "compute_pause_instance",
    "reboot_hard": "compute_reboot_instance",
    "reboot_soft": "compute_reboot_instance",
    "resume": "compute_resume_instance",
    "retry_build": "compute__do_build_and_run_instance",
    "start": "compute_start_instance",
    "stop": "compute_stop_instance",
    "suspend": "compute_suspend_instance",
    "unpause": "compute_unpause_instance",
}


_CORRECTIONS = {
    "follow_guest": ("power_sync", "compute_sync_power_state"),
    "repair_state": ("state_repair", "compute_repair_state"),
}
"""What Duranova changes by itself, without a workflow → its action and its event."""


def event_name(lifecycle: str) -> str:
    """Nova's name of the event in which the host does its part of this lifecycle."""
    return _EVENTS[lifecycle]


def accept_operation(
    session: Session,
    server: Server,
    lifecycle: str,
    user_id: str,
    request_id: str,
    given: dict[str, Any],
) -> Operation:
    """Record a request on a server as accepted; ``given`` is what counts for this operation only."""
    operation = Operation(
        request_id=request_id,
        action=LIFECYCLES[lifecycle].action,
        lifecycle=lifecycle,
        server_id=server.id,
        project_id=server.project_id,
        user_id=user_id,
        host=server.host,
        input=given,
    )
    session.add(operation)
    return operation


_LIVE = (
    select(Operation)
    .where(
        Operation.server_id == bindparam("server_id"),
        col(Operation.state).in_(LIVE_OPERATION_STATES),
    )
    .order_by(col(Operation.created_at))
)


def live_operations(session: Session, server_id: str) -> list[Operation]:
    """The operations of a server that have not ended, oldest first."""
    return list(session.exec(_LIVE, params={"server_id": server_id}))


def live_everywhere(session: Session, accepted_before: datetime) -> list[Operation]:
    """Every operation accepted before this instant that has not ended, oldest first."""
    query = (
        select(Operation)
        .where(
            col(Operation.state).in_(LIVE_OPERATION_STATES),
            Operation.created_at < accepted_before,
        )
        .order_by(col(Operation.created_at))
    )
    return list(session.exec(query))


@dataclass(frozen=True, slots=True)
class LiveCount:
    """How many operations of a lifecycle are in a state, and since when the oldest of them was accepted."""

    lifecycle: str
    state: str
    count: int
    oldest: datetime


def count_live(session: Session) -> list[LiveCount]:
    """The operations that have not ended, by lifecycle and state."""
    query = (
        select(
            Operation.lifecycle,
            Operation.state,
            func.count(),
            func.min(Operation.created_at),
        )
        .where(col(Operation.state).in_(LIVE_OPERATION_STATES))
        .group_by(Operation.lifecycle, Operation.state)
    )
    return [LiveCount(*row) for row in session.exec(query)]


def open_event(session: Session, operation: Operation, host: str | None) -> None:
    """Start the host's event of this operation, unless it is open already."""
    name = event_name(operation.lifecycle)
    if _open_events(session, operation.id):
        return
    session.add(OperationEvent(operation_id=operation.id, name=name, host=host))


def close_events(session: Session, operation_id: str, error: str | None = None) -> None:
    """End every open event of the operation: Success, or Error with the cause."""
    for event in _open_events(session, operation_id):
        event.finished_at = now()
        event.result = "Error" if error else "Success"
        event.details = error
        session.add(event)


_ADD_EVENTS = insert(OperationEvent)


def add_stages(
    session: Session, operation: Operation, host: str | None, stages: Iterable[StageTaken]
) -> None:
    """Write down the stages that a host says it took."""
    steps = [
        OperationEvent(
            operation_id=operation.id,
            name=stage.name,
            host=host,
            started_at=datetime.fromtimestamp(stage.started_at, UTC),
            finished_at=datetime.fromtimestamp(stage.finished_at, UTC),
            result="Error" if stage.error else "Success",
            details=stage.error,
        )
        for stage in stages
    ]
    if steps:  # past the ORM, which would need a statement for each; so they are announced here
        rows = [step.model_dump(exclude={"id"}) for step in steps]
        session.connection().execute(_ADD_EVENTS, rows)
    for step in steps:
        emit(session, _event(EventType.STEP, operation, step))


def add_step(session: Session, operation: Operation, name: str, details: str, **given: Any) -> None:
    """Write down a step that took no time: Success, unless ``result`` says otherwise."""
    moment = now()
    given = {"result": "Success", **given}
    session.add(
        OperationEvent(
            operation_id=operation.id,
            name=name,
            details=details,
            started_at=moment,
            finished_at=moment,
            **given,
        )
    )


_OPEN_EVENTS = select(OperationEvent).where(
    OperationEvent.operation_id == bindparam("operation_id"),
    col(OperationEvent.finished_at).is_(None),
)


def _open_events(session: Session, operation_id: str) -> list[OperationEvent]:
    return list(session.exec(_OPEN_EVENTS, params={"operation_id": operation_id}))


def end_operation(
    session: Session, operation: Operation, state: OperationState, error: str | None = None
) -> None:
    """Write the operation's end and close its events."""
    operation.state = state
    operation.error = error
    operation.step = None
    operation.verbs, operation.deadline_at = [], None
    operation.percent = 100 if state is OperationState.SUCCEEDED else operation.percent
    operation.finished_at = operation.updated_at = now()
    session.add(operation)
    close_events(session, operation.id, error)


def record_correction(
    session: Session, server: Server, lifecycle: str, request_id: str, details: str
) -> Operation:
    """Add an operation that has ended with success: a change of the record that nobody asked for, so that
    nothing changes silently. ``details`` says in a sentence what was changed and why."""
    action, event = _CORRECTIONS[lifecycle]
    operation = Operation(
        request_id=request_id,
        action=action,
        lifecycle=lifecycle,
        server_id=server.id,
        project_id=server.project_id,
        user_id=SYSTEM_USER,
        host=server.host,
    )
    session.add(operation)
    session.flush()  # the row its event refers to
    end_operation(session, operation, OperationState.SUCCEEDED)
    session.add(
        OperationEvent(
            operation_id=operation.id,
            name=event,
            host=server.host,
            finished_at=now(),
            result="Success",
            details=details,
        )
    )
    return operation


def count_corrections(
    session: Session, server_id: str, user_id: str, since: datetime, *, failed: bool = False
) -> int:
    """How many operations this user, Duranova itself, has started on the server since then; or only those
    that ``failed``."""
    query = select(func.count(col(Operation.id))).where(
        Operation.server_id == server_id,
        Operation.user_id == user_id,
        col(Operation.created_at) >= since,
        col(Operation.lifecycle).not_in(_CORRECTIONS),
    )
    if failed:
        query = query.where(Operation.state == OperationState.FAILED)
    return int(session.exec(query).one())


def list_operations(
    session: Session,
    server_id: str,
    *,
    limit: int,
    marker: str | None = None,
    changed_since: datetime | None = None,
    changed_before: datetime | None = None,
) -> list[Operation]:
    """A page of a server's operations, newest first, behind the one whose request id is ``marker``
    (BadRequest when there is none)."""
    statement: Any = select(Operation).where(Operation.server_id == server_id)
    if changed_since is not None:
        statement = statement.where(col(Operation.updated_at) >= changed_since)
    if changed_before is not None:
        statement = statement.where(col(Operation.updated_at) <= changed_before)
    after = None
    if marker is not None:
        last = find_operation(session, server_id, marker)
        if last is None:
            raise BadRequest(f"marker [{marker}] not found")
        after = (last.created_at, last.id)
    order = [(col(Operation.created_at), True), (col(Operation.id), True)]
    return list(session.scalars(keyset(statement, order, after, limit)))


def find_operation(session: Session, server_id: str, request_id: str) -> Operation | None:
    """The operation that this request started on this server."""
    return session.exec(
        select(Operation).where(
            Operation.server_id == server_id, Operation.request_id == request_id
        )
    ).first()


def events_of(session: Session, operation_id: str) -> list[OperationEvent]:
    """The steps of an operation, oldest first."""
    query = select(OperationEvent).where(OperationEvent.operation_id == operation_id)
    return list(session.exec(query.order_by(col(OperationEvent.id))))


# --- what the world is told


_TOLD = {
    "action",
    "attempt",
    "created_at",
    "deadline_at",
    "error",
    "finished_at",
    "lifecycle",
    "request_id",
    "retry_of",
    "started_at",
    "state",
    "user_id",
    "verbs",
}
"""Columns of an operation that its events carry."""
_TOLD_OF_STEP = {"details", "finished_at", "name", "result", "started_at"}


@listens_for(Session, "before_flush")
def _announce(session: Session, *_flush: object) -> None:
    """Emit an event for each change of an operation or a step of one that is about to be written.

    So whoever changes them need not think of events. A bulk UPDATE would go past this; there is none.
    """
    changed = [*session.new, *session.dirty]
    operations = sorted(
        (o for o in changed if isinstance(o, Operation)), key=lambda o: o.created_at
    )
    told: list[tuple[EventType, Operation | None, OperationEvent | None]]
    told = [(kind, operation, None) for operation in operations for kind in _news(operation)]
    for step in changed:
        if isinstance(step, OperationEvent) and _has_news(step):
            told.append((EventType.STEP, session.get(Operation, step.operation_id), step))
    order = list(EventType)
    for kind, operation, step in sorted(told, key=lambda each: order.index(each[0])):
        if operation is not None:
            emit(session, _event(kind, operation, step))


def _news(operation: Operation) -> Iterator[EventType]:
    history = inspect(operation).attrs.state.history
    if not history.added:
        return
    before, after = next(iter(history.deleted or ()), None), OperationState(operation.state)
    if not inspect(operation).persistent:
        yield EventType.ACCEPTED
    if after is OperationState.RUNNING:
        waited = before == OperationState.WAITING_OPERATOR
        yield EventType.RESUMED if waited else EventType.STARTED
    elif after is OperationState.WAITING_OPERATOR:
        yield EventType.WAITING
    elif after is not OperationState.ACCEPTED:
        yield EventType.ENDED


def _has_news(step: OperationEvent) -> bool:
    row = inspect(step)
    return not row.persistent or row.attrs.finished_at.history.has_changes()


def _event(kind: EventType, operation: Operation, step: OperationEvent | None) -> Event:
    data = operation.model_dump(mode="json", include=_TOLD)
    if step is not None:
        data["step"] = step.model_dump(mode="json", include=_TOLD_OF_STEP)
    return Event(
        type=kind,
        operation_id=operation.id,
        server_id=operation.server_id,
        project_id=operation.project_id,
        host=step.host if step is not None else operation.host,
        data=data,
    )
