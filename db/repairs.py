"""What reconcilers put right in the record, each thing only with proof, a bounded number at a time.

The caller's transaction makes it so. What a live operation owns is left alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete, or_
from sqlmodel import Session, SQLModel, col, select

from db.hosts import Claim, want_nics
from db.network import Port, hosts_to_refresh, release_server_ports
from db.operations import (
    Decision,
    Operation,
    OperationEvent,
    live_operations,
    record_correction,
)
from db.servers import Server, ServerFault, ServerTag
from db.session import now
from domain.states import LIVE_OPERATION_STATES, VmState

BATCH = 200
_BUSY = select(Operation.server_id).where(col(Operation.state).in_(LIVE_OPERATION_STATES))


def _idle() -> Any:
    return col(Server.id).not_in(_BUSY)


def settle_transitions(session: Session, before: datetime, request_id: str) -> list[str]:
    """End the transitions that no operation carries out and that did not change since ``before``: the task
    state is cleared, a server that was being built is in ERROR. What was done, in sentences."""
    query = (
        select(Server)
        .where(
            col(Server.deleted_at).is_(None),
            or_(col(Server.task_state).is_not(None), col(Server.vm_state) == VmState.BUILDING),
            col(Server.updated_at) < before,
            _idle(),
        )
        .order_by(Server.id)
        .limit(BATCH)
    )
    done = []
    for server in session.exec(query).all():
        session.refresh(server, with_for_update=True)
        if server.updated_at >= before or live_operations(session, server.id):
            continue  # somebody was quicker
        was = f"{server.vm_state}/{server.task_state}"
        details = f"The server was {was}, but no operation was at work on it"
        server.task_state = None
        if server.vm_state == VmState.BUILDING:
            server.vm_state = VmState.ERROR
            session.add(ServerFault(server_id=server.id, message=details))
        server.updated_at = now()
        session.add(server)
        record_correction(session, server, "repair_state", request_id, details)
        done.append(f"server {server.id}: {was}")
    return done


def return_claims(session: Session) -> list[str]:
    """Give back what deleted servers hold of hosts, and count active servers as built."""
    gone = _of_deleted(session, select(Server.id).join(Claim))
    session.execute(delete(Claim).where(col(Claim.server_id).in_(gone)))
    built = (
        select(Claim)
        .join(Server)
        .where(col(Claim.building), col(Server.vm_state) == VmState.ACTIVE, _idle())
        .limit(BATCH)
    )
    done = [f"claim of deleted server {server_id}" for server_id in gone]
    for claim in session.exec(built).all():
        claim.building = False
        session.add(claim)
        done.append(f"claim of server {claim.server_id} counted as building")
    return done


def release_ports(session: Session) -> list[str]:
    """Free the ports of deleted servers, as their delete should have done."""
    ports = select(Server.id).join(Port, col(Port.device_id) == Server.id).distinct()
    gone = _of_deleted(session, ports)
    for server_id in gone:
        want_nics(session, hosts_to_refresh(session, server_id))
        release_server_ports(session, server_id)
    return [f"ports of deleted server {server_id}" for server_id in gone]


def _of_deleted(session: Session, servers: Any) -> list[str]:
    """Of these ids, those whose server is deleted and idle: a delete is final, so no lock is needed."""
    query = servers.where(col(Server.deleted_at).is_not(None), _idle()).limit(BATCH)
    return sorted(session.exec(query))


_OF_SERVER: tuple[tuple[type[SQLModel], str], ...] = (
    (Operation, "server_id"),
    (ServerFault, "server_id"),
    (ServerTag, "server_id"),
    (Server, "id"),
)
_OF_OPERATION: tuple[type[SQLModel], ...] = (Decision, OperationEvent)
"""Rows that go with a server, those that refer to others first."""


def forget_deleted(session: Session, before: datetime) -> list[str]:
    """Remove all rows of servers that were deleted before this instant.

    Servers that still hold anything are kept: other reconcilers come first.
    """
    query = (
        select(Server.id)
        .where(
            col(Server.deleted_at) < before,
            _idle(),
            col(Server.id).not_in(select(Claim.server_id)),
            col(Server.id).not_in(select(Port.device_id)),
        )
        .order_by(col(Server.deleted_at))
        .limit(BATCH)
    )
    gone = list(session.exec(query))
    operations = select(Operation.id).where(col(Operation.server_id).in_(gone))
    for table in _OF_OPERATION:
        session.execute(delete(table).where(_column(table, "operation_id").in_(operations)))
    for table, column in _OF_SERVER:
        session.execute(delete(table).where(_column(table, column).in_(gone)))
    return [f"server {server_id}" for server_id in gone]


def _column(table: type[SQLModel], name: str) -> Any:
    return col(getattr(table, name))
