"""What reconcilers put right in the record, each thing only with proof, a bounded number at a time.

Each has two parts: one reads which servers it is about and may take its time, in a transaction that keeps
nobody waiting; the other, in the caller's write transaction, proves it again for those servers and puts it
right. What a live operation owns is left alone.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import delete, exists
from sqlmodel import Session, SQLModel, col, select

from db.differences import columns, differing, looked_at
from db.hosts import Claim, want_nics
from db.network import Port, hosts_to_refresh, release_server_ports
from db.operations import (
    IN_TRANSITION,
    Decision,
    Operation,
    OperationEvent,
    idle,
    live_operations,
    record_correction,
)
from db.servers import Server, ServerFault, ServerTag, alive
from db.session import now
from domain.states import VmState

BATCH = 200
_GONE = columns(Server.id).where(col(Server.deleted_at).is_not(None), idle())
"""A delete is final, so what is found here needs no lock."""
_BUILT = (
    columns(Claim.server_id)
    .join(Server)
    .where(col(Claim.building), col(Server.vm_state) == VmState.ACTIVE, idle())
)


def _among(session: Session, query: Any, server_ids: Collection[str]) -> list[str]:
    return sorted(session.connection().scalars(query.where(col(Server.id).in_(server_ids))))


def _deleted_among(session: Session, server_ids: Collection[str]) -> list[str]:
    rows = looked_at(session, _GONE, Server.id, server_ids)
    return [row[0] for row in islice(rows, BATCH)]


# --- transitions


def _unowned(before: datetime) -> Any:
    changed = col(Server.updated_at) < before
    return columns(Server.id).where(col(Server.id).in_(IN_TRANSITION), changed, idle())


def unowned_transitions(session: Session, before: datetime) -> list[str]:
    """Servers in a transition that no operation carries out and that did not change since ``before``."""
    query = _unowned(before).order_by(Server.id).limit(BATCH)
    return list(session.connection().scalars(query))


def settle_transitions(
    session: Session, server_ids: Collection[str], before: datetime, request_id: str
) -> list[str]:
    """End the transitions of ``unowned_transitions``: the task state is cleared, a server that was being
    built is in ERROR. What was done, in sentences."""
    done = []
    for server_id in _among(session, _unowned(before), server_ids):
        server = session.get(Server, server_id, with_for_update=True)
        if server is None or server.updated_at >= before or live_operations(session, server_id):
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


# --- claims


def lost_claims(session: Session) -> list[str]:
    """Servers that are deleted and still hold something of a host, or are active and count as being built."""
    not_alive = differing(session, columns(Claim.server_id), columns(Server.id).where(alive()))
    built = session.connection().scalars(_BUILT.limit(BATCH))
    return [*_deleted_among(session, not_alive), *built]


def return_claims(session: Session, server_ids: Collection[str]) -> list[str]:
    """Give back what the deleted ones of these servers hold of hosts, and count the active ones as built."""
    gone = _among(session, _GONE.join(Claim), server_ids)
    session.execute(delete(Claim).where(col(Claim.server_id).in_(gone)))
    done = [f"claim of deleted server {server_id}" for server_id in gone]
    built = _among(session, _BUILT, server_ids)
    for claim in session.exec(select(Claim).where(col(Claim.server_id).in_(built))).all():
        claim.building = False
        session.add(claim)
        done.append(f"claim of server {claim.server_id} counted as building")
    return done


# --- ports


def lost_ports(session: Session) -> list[str]:
    """Deleted servers that still have ports."""
    devices = columns(Port.device_id).where(col(Port.device_id) != "")
    return _deleted_among(session, differing(session, devices, columns(Server.id).where(alive())))


def release_ports(session: Session, server_ids: Collection[str]) -> list[str]:
    """Free the ports of the deleted ones of these servers, as their delete should have done."""
    wired = exists().where(col(Port.device_id) == Server.id)
    gone = _among(session, _GONE.where(wired), server_ids)
    for server_id in gone:
        want_nics(session, hosts_to_refresh(session, server_id))
        release_server_ports(session, server_id)
    return [f"ports of deleted server {server_id}" for server_id in gone]


# --- retention

_OF_SERVER: tuple[tuple[type[SQLModel], str], ...] = (
    (Operation, "server_id"),
    (ServerFault, "server_id"),
    (ServerTag, "server_id"),
    (Server, "id"),
)
_OF_OPERATION: tuple[type[SQLModel], ...] = (Decision, OperationEvent)
"""Rows that go with a server, those that refer to others first."""


def _forgotten(before: datetime) -> Any:
    return _GONE.where(
        col(Server.deleted_at) < before,
        ~exists().where(col(Claim.server_id) == Server.id),
        ~exists().where(col(Port.device_id) == Server.id),
    )


def deleted_before(session: Session, before: datetime) -> list[str]:
    """Servers that were deleted before this instant and hold nothing any more: other reconcilers come
    first."""
    query = _forgotten(before).order_by(col(Server.deleted_at)).limit(BATCH)
    return list(session.connection().scalars(query))


def forget_deleted(session: Session, server_ids: Collection[str], before: datetime) -> list[str]:
    """Remove all rows of those servers that ``deleted_before`` found."""
    gone = _among(session, _forgotten(before), server_ids)
    operations = select(Operation.id).where(col(Operation.server_id).in_(gone))
    for table in _OF_OPERATION:
        session.execute(delete(table).where(_column(table, "operation_id").in_(operations)))
    for table, column in _OF_SERVER:
        session.execute(delete(table).where(_column(table, column).in_(gone)))
    return [f"server {server_id}" for server_id in gone]


def _column(table: type[SQLModel], name: str) -> Any:
    return col(getattr(table, name))
