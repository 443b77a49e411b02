"""The record's side of a failed step: written down, waited with, gone on from. Plain blocking methods."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from db.operations import Operation, OperationEvent, add_stages, add_step
from db.servers import Server
from db.session import now, transaction
from domain.errors import NotFound
from domain.states import LIVE_OPERATION_STATES, OperationState
from runtime.metrics import HOLDS
from workflows.contract import Failure, GoOn, Hold

_WAIT = "waiting_operator"
"""The event that lasts as long as a wait does."""
_SKIP, _CONFIG_DRIVE = "skip", "config_drive"
_log = structlog.get_logger(__name__)


class Holds:
    """Waits for an operator in the database, each change in one transaction; every call may come twice."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record_failure(self, cmd: Failure) -> None:
        """Write down a failed step that nobody is asked about."""
        with transaction(self._engine) as session:
            operation = _operation(session, cmd.ref.operation_id)
            if operation.state in LIVE_OPERATION_STATES:
                _write(session, operation, cmd)

    def hold(self, cmd: Hold) -> None:
        """Show the wait; no-op for an operation that has ended, or for a wait shown before."""
        failure = cmd.failure
        with transaction(self._engine) as session:
            operation = _operation(session, failure.ref.operation_id)
            if operation.state not in LIVE_OPERATION_STATES or operation.holds >= cmd.number:
                return
            _write(session, operation, failure)
            operation.state = OperationState.WAITING_OPERATOR
            operation.holds = cmd.number
            operation.step, operation.error = failure.step, failure.error
            operation.verbs = list(cmd.verbs)
            operation.deadline_at = datetime.fromtimestamp(cmd.deadline_at, UTC)
            operation.updated_at = now()
            session.add(operation)
            session.add(OperationEvent(operation_id=operation.id, name=_WAIT, host=failure.host))
        HOLDS.labels(operation.lifecycle, failure.step).inc()
        _log.warning(
            "operation waits for an operator",
            operation_id=operation.id,
            server_id=operation.server_id,
            step=failure.step,
            host=failure.host,
            error=failure.error,
        )

    def go_on(self, cmd: GoOn) -> None:
        """End the wait with what was said; no-op when it has ended, or another one began."""
        with transaction(self._engine) as session:
            operation = _operation(session, cmd.ref.operation_id)
            waiting = operation.state == OperationState.WAITING_OPERATOR
            if not waiting or operation.holds != cmd.number:
                return
            if cmd.verb == _SKIP and operation.step == _CONFIG_DRIVE:
                server = session.get(Server, operation.server_id)
                if server is not None:
                    server.config_drive = False
                    session.add(server)
            said = " by ".join(part for part in (cmd.verb, cmd.order.by) if part)
            _end_wait(session, operation, ": ".join(p for p in (said, cmd.order.reason) if p))
            operation.state = OperationState.RUNNING
            operation.error, operation.verbs, operation.deadline_at = None, [], None
            operation.updated_at = now()
            session.add(operation)
        _log.info(
            "operation goes on",
            operation_id=operation.id,
            server_id=operation.server_id,
            verb=cmd.verb,
            by=cmd.order.by,
        )


def _write(session: Session, operation: Operation, failure: Failure) -> None:
    if failure.stages:
        add_stages(session, operation, failure.host, failure.stages)
        return
    add_step(session, operation, failure.step, failure.error, host=failure.host, result="Error")


def _end_wait(session: Session, operation: Operation, said: str) -> None:
    query = select(OperationEvent).where(
        OperationEvent.operation_id == operation.id,
        OperationEvent.name == _WAIT,
        col(OperationEvent.finished_at).is_(None),
    )
    for event in session.exec(query):
        event.finished_at, event.result, event.details = now(), "Success", said
        session.add(event)


def _operation(session: Session, operation_id: str) -> Operation:
    operation = session.get(Operation, operation_id, with_for_update=True)
    if operation is None:
        raise NotFound(f"Operation {operation_id} has no record")
    return operation
