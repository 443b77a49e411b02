"""The record's side of every operation: begin, finish, and the sweep's findings. Plain blocking methods."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine
from sqlmodel import Session, select

from activities.control.placement import guest_spec
from db.hosts import Claim, drop_claim, note_built, want_nics
from db.network import hosts_to_refresh, nic_specs, release_server_ports
from db.operations import Operation, add_stages, end_operation, live_operations, open_event
from db.servers import Server, ServerFault
from db.session import now, snapshot, transaction
from domain.errors import NotFound
from domain.guest import Fence
from domain.lifecycle import LIFECYCLES, RETRY_BUILD
from domain.states import LIVE_OPERATION_STATES, OperationState, PowerState, TaskState, VmState
from runtime.metrics import OPERATION_SECONDS, OPERATIONS
from runtime.settings import Settings
from workflows.contract import ApplyNics, Begin, Finish, GuestPower, Located, Ref, Verdict

_FAULT_CHARS = 255
UNWINDING = "unwinding"
"""The step of an operation that is being undone."""
_WITHOUT_SPEC = ("create", "delete", RETRY_BUILD)
"""Lifecycles that begin by taking a guest down, if there is any: what it was like does not matter."""
_log = structlog.get_logger(__name__)


class Records:
    """Begins and ends operations in the database, each in one transaction; every call may come twice."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings

    def begin(self, cmd: Begin) -> Located:
        """Mark the operation running and say where the server is. NotFound if it is gone."""
        with transaction(self._engine) as session:
            server, operation = _load(session, cmd.ref)
            if server.deleted_at is not None and operation.lifecycle != "delete":
                raise NotFound(f"Instance {server.id} could not be found.")
            if operation.state == OperationState.ACCEPTED:
                self._enter(session, server, operation)
            here = server.host is not None and server.image_id is not None
            wanted = here and operation.lifecycle not in _WITHOUT_SPEC
            return Located(
                host=server.host,
                fence=Fence(int(operation.input.get("epoch", server.epoch)), operation.id),
                spec=guest_spec(session, server, server.host) if wanted and server.host else None,
                input={"timeout_s": str(self._timeout(operation))},
                attempt=operation.attempt,
            )

    def _enter(self, session: Session, server: Server, operation: Operation) -> None:
        lifecycle = LIFECYCLES[operation.lifecycle]
        operation.state = OperationState.RUNNING
        operation.started_at = operation.updated_at = now()
        operation.host = server.host
        operation.attempt = 1
        operation.step = lifecycle.task_state
        server.task_state = lifecycle.task_state
        if operation.lifecycle in ("delete", RETRY_BUILD):
            server.epoch += 1  # everything spawned under an earlier epoch is refused from here on
            operation.input = {**operation.input, "epoch": server.epoch}
        session.add_all((server, operation))
        open_event(session, operation, server.host)

    def _timeout(self, operation: Operation) -> float:
        return float(operation.input.get("timeout_s", self._settings.shutdown_timeout_s))

    def finish(self, cmd: Finish) -> None:
        """Write the end of an operation and the server's state; no-op for an operation that has ended."""
        with transaction(self._engine) as session:
            server, operation = _load(session, cmd.ref)
            if operation.state not in LIVE_OPERATION_STATES:
                return
            if cmd.succeeded and operation.step == UNWINDING:
                return  # a late success: what it speaks of is being taken down
            ended = [operation]
            server.updated_at = now()
            session.add(server)
            add_stages(session, operation, operation.host, cmd.guest.stages if cmd.guest else ())
            if not cmd.succeeded:
                _failed(session, server, operation, cmd)
            elif operation.lifecycle == "delete":
                ended = _deleted(session, server, operation)
            else:
                _succeeded(session, server, operation, cmd.guest)
        for each in ended:  # and committed
            _tell(each)

    def may_unwind(self, cmd: Begin) -> Verdict:
        """Refuse if the operation has succeeded; else no success of this attempt is taken any more."""
        with transaction(self._engine) as session:
            _server, operation = _load(session, cmd.ref)
            if operation.state == OperationState.SUCCEEDED:
                return Verdict(allowed=False)
            if operation.state in LIVE_OPERATION_STATES:
                operation.step = UNWINDING
                operation.updated_at = now()
                session.add(operation)
            return Verdict(allowed=True)

    def host_nics(self, host: str) -> ApplyNics:
        """The wanted NICs of every server that has a claim on this host."""
        with snapshot(self._engine) as session:
            ids = list(session.exec(select(Claim.server_id).where(Claim.host == host)))
            return ApplyNics.packed(nic_specs(session, ids))


def ref_of(operation: Operation) -> Ref:
    """The workflow input of a recorded operation."""
    return Ref(
        operation_id=operation.id,
        server_id=operation.server_id,
        project_id=operation.project_id,
        request_id=operation.request_id,
        lifecycle=operation.lifecycle,
        hold_s=float(operation.input.get("hold_s", 0.0)),
    )


def _tell(operation: Operation) -> None:
    """Count an operation that has ended, and say so in the log."""
    ended = operation.finished_at or now()
    seconds = max(0.0, (ended - operation.created_at).total_seconds())
    OPERATIONS.labels(operation.lifecycle, operation.state).inc()
    OPERATION_SECONDS.labels(operation.lifecycle, operation.state).observe(seconds)
    _log.info(
        "operation ended",
        operation_id=operation.id,
        request_id=operation.request_id,
        lifecycle=operation.lifecycle,
        server_id=operation.server_id,
        state=operation.state,
        host=operation.host,
        seconds=round(seconds, 3),
        error=operation.error,
    )


def _load(session: Session, ref: Ref) -> tuple[Server, Operation]:
    server = session.get(Server, ref.server_id, with_for_update=True)
    operation = session.get(Operation, ref.operation_id)
    if server is None or operation is None:
        raise NotFound(f"Instance {ref.server_id} has no record")
    return server, operation


def _succeeded(
    session: Session, server: Server, operation: Operation, guest: GuestPower | None
) -> None:
    server.vm_state = LIFECYCLES[operation.lifecycle].success
    server.task_state = None
    server.power_state = PowerState.NOSTATE if guest is None else guest.power_state
    server.seen_by = guest.seen_by if guest and guest.seen_by else server.seen_by
    if operation.lifecycle in ("create", RETRY_BUILD):
        server.launched_at = now()
        server.progress = 100
        note_built(session, server.id)
    end_operation(session, operation, OperationState.SUCCEEDED)


def _failed(session: Session, server: Server, operation: Operation, cmd: Finish) -> None:
    message = cmd.error or "Unknown failure"
    # A step may find this out, and fail of it, before the workflow is told of the delete.
    overtaken = server.task_state == TaskState.DELETING and operation.lifecycle != "delete"
    cancelled = cmd.cancelled or overtaken
    state = OperationState.CANCELLED if cancelled else OperationState.FAILED
    end_operation(session, operation, state, message)
    if overtaken:
        return  # delete writes the rest
    server.task_state = None
    failure = LIFECYCLES[operation.lifecycle].failure
    if failure is None:
        return
    server.vm_state = failure
    fault = ServerFault(server_id=server.id, message=message[:_FAULT_CHARS], details=message)
    session.add(fault)


def _deleted(session: Session, server: Server, operation: Operation) -> list[Operation]:
    """Returns the operations that ended with it, itself included."""
    server.vm_state = VmState.DELETED
    server.task_state = None
    server.power_state = PowerState.NOSTATE
    server.host = None
    server.admin_pass_sealed = None
    server.deleted_at = server.terminated_at = now()
    want_nics(session, hosts_to_refresh(session, server.id))
    release_server_ports(session, server.id)
    drop_claim(session, server.id)
    ended = live_operations(session, server.id)
    for other in ended:
        if other.id == operation.id or other.lifecycle == "delete":
            end_operation(session, other, OperationState.SUCCEEDED)
        else:
            end_operation(session, other, OperationState.CANCELLED, "Deleted meanwhile")
    return ended
