"""A failed build accepted once more, from its stored request; for the API and for the operator's desk."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select
from temporalio.client import Client
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.control.records import ref_of
from db.operations import Operation, accept_operation, live_operations
from db.servers import Server
from db.session import now, transaction
from domain.errors import Conflict, NotFound, ServerBusy
from domain.lifecycle import BUILDS, LIFECYCLES, RETRY_BUILD
from domain.states import LIVE_OPERATION_STATES, OperationState, VmState
from runtime.temporal import start_operation
from workflows.contract import Accepted, Ref, RetryBuild

_KEPT = ("hold_s", "host", "hypervisor_hostname")
"""What of the first request's input counts for its repetition, too."""


def accept_retry(
    session: Session, failed: Operation, user_id: str, request_id: str, new_id: str | None = None
) -> Operation:
    """Record the new operation; the caller commits and starts it. Conflict, saying why, when this one
    cannot be retried."""
    server = session.get(Server, failed.server_id, with_for_update=True)
    if server is None or server.deleted_at is not None:
        raise NotFound(f"Instance {failed.server_id} could not be found.")
    _check(session, failed, server)
    row = LIFECYCLES[RETRY_BUILD]
    server.vm_state, server.task_state = VmState.BUILDING, row.task_state
    server.progress, server.updated_at = 0, now()
    given: dict[str, Any] = {k: failed.input[k] for k in _KEPT if k in failed.input}
    operation = accept_operation(session, server, RETRY_BUILD, user_id, request_id, given)
    operation.retry_of = failed.id
    if new_id:
        operation.id = new_id
    session.add(server)
    return operation


def _check(session: Session, failed: Operation, server: Server) -> None:
    if failed.lifecycle not in BUILDS:
        raise Conflict(f"Operation {failed.id} is no build: only a failed create can be retried")
    if failed.state in LIVE_OPERATION_STATES:
        raise Conflict(f"Operation {failed.id} has not ended: it is {failed.state}")
    if live := live_operations(session, server.id):
        raise ServerBusy(
            f"Instance {server.id} is owned by operation {live[0].id} ({live[0].action}, "
            f"{live[0].state})"
        )
    if failed.state == OperationState.SUCCEEDED or server.vm_state != VmState.ERROR:
        raise Conflict(
            f"Operation {failed.id} {failed.state}, and instance {server.id} is in vm_state "
            f"{server.vm_state}: only a server in ERROR is built again"
        )
    newest = newest_build(session, server.id)
    if newest is None or server.launched_at is not None:
        raise Conflict(f"Instance {server.id} was built once: rebuild or reboot it instead")
    if newest.id != failed.id:
        raise Conflict(f"Operation {failed.id} was retried by operation {newest.id}")


def may_retry(session: Session, failed: Operation) -> bool:
    """Whether a retry of this operation would be accepted now."""
    server = session.get(Server, failed.server_id)
    if server is None or server.deleted_at is not None:
        return False
    try:
        _check(session, failed, server)
    except Conflict:
        return False
    return True


def newest_build(session: Session, server_id: str) -> Operation | None:
    """The server's last build."""
    query = select(Operation).where(
        Operation.server_id == server_id, col(Operation.lifecycle).in_(BUILDS)
    )
    return session.exec(query.order_by(col(Operation.created_at).desc())).first()


class Retries:
    """Retries asked for at the operator's desk."""

    def __init__(self, client: Client, engine: Engine) -> None:
        self._client = client
        self._engine = engine

    async def retry(self, cmd: RetryBuild) -> Accepted:
        """Accept once, start at once; the sweep starts what this could not."""
        ref = await asyncio.to_thread(self._accept, cmd)
        try:
            workflow = LIFECYCLES[RETRY_BUILD].workflow
            await start_operation(self._client, workflow, ref)
        except WorkflowAlreadyStartedError:
            pass  # by the sweep
        return Accepted(ref.operation_id, ref.server_id)

    def _accept(self, cmd: RetryBuild) -> Ref:
        with transaction(self._engine) as session:
            known = session.get(Operation, cmd.operation_id)
            if known is not None:
                return ref_of(known)
            failed = session.get(Operation, cmd.subject) or newest_build(session, cmd.subject)
            if failed is None:
                raise NotFound(f"No operation and no build of a server has the id {cmd.subject}")
            by = cmd.order.by or "operator"
            request_id = f"req-{cmd.operation_id}"
            return ref_of(accept_retry(session, failed, by[:36], request_id, cmd.operation_id))
