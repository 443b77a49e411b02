"""Reconcilers on the record: each puts right what it can prove, once, and leaves the rest alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import col, select

from db.hosts import Claim
from db.network import FixedIp, Port
from db.operations import Decision, Operation, OperationEvent
from db.repairs import (
    deleted_before,
    forget_deleted,
    lost_claims,
    lost_ports,
    release_ports,
    return_claims,
    settle_transitions,
    unowned_transitions,
)
from db.servers import Server, ServerFault, ServerTag
from db.session import now, reading, transaction
from domain.states import VmState
from tests.record import Record

LONG_AGO = now() - timedelta(days=100)


@pytest.fixture
def record(engine: Engine) -> Record:
    made = Record(engine)
    made.host("one")
    return made


def rows(engine: Engine, table: type[Any]) -> list[Any]:
    with reading(engine) as session:
        return list(session.exec(select(table)))


def settled(engine: Engine) -> int:
    before = now() - timedelta(seconds=60)
    with transaction(engine) as session:
        found = unowned_transitions(session, before)
        everything = list(session.exec(select(Server.id)))
        done = settle_transitions(session, everything, before, "req-1")
    assert len(done) == len(found)
    return len(done)


# --- transitions


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((VmState.ACTIVE, "powering-off"), (VmState.ACTIVE, None)),
        ((VmState.BUILDING, "spawning"), (VmState.ERROR, None)),
        ((VmState.BUILDING, None), (VmState.ERROR, None)),
        ((VmState.ERROR, "deleting"), (VmState.ERROR, None)),
    ],
)
def test_a_transition_that_nobody_carries_out_ends_where_users_see_it(
    engine: Engine, record: Record, before: Any, after: Any
) -> None:
    server_id = record.server(vm_state=before[0], task_state=before[1], updated_at=LONG_AGO)
    assert settled(engine) == 1
    [server] = rows(engine, Server)
    assert (server.vm_state, server.task_state) == after
    assert len(rows(engine, ServerFault)) == (before[0] == VmState.BUILDING)
    [operation], [event] = rows(engine, Operation), rows(engine, OperationEvent)
    assert (operation.server_id, operation.action, operation.state, operation.user_id) == (
        server_id, "state_repair", "succeeded", "system",
    )  # fmt: skip
    assert "no operation was at work" in event.details
    assert settled(engine) == 0


def test_a_transition_is_left_alone_that_is_young_or_owned_or_over(
    engine: Engine, record: Record
) -> None:
    record.server(task_state="powering-off")
    owned = record.server(vm_state=VmState.BUILDING, updated_at=LONG_AGO)
    record.operation(owned, "waiting_operator")
    record.server(updated_at=LONG_AGO)
    gone = record.server(task_state="deleting", updated_at=LONG_AGO)
    record.bury(gone)
    assert settled(engine) == 0


# --- claims and ports


def put_right(engine: Engine) -> list[str]:
    """What is done about claims and ports, when they are asked to look at every server."""
    with transaction(engine) as session:
        claims, ports = lost_claims(session), lost_ports(session)
        everything = list(session.exec(select(Server.id)))
        returned, released = return_claims(session, everything), release_ports(session, everything)
    assert (len(returned), len(released)) == (len(claims), len(ports))
    return returned + released


def test_what_a_deleted_server_holds_is_given_back(engine: Engine, record: Record) -> None:
    kept, gone = record.server(), record.server()
    port, own = record.port(gone), record.port(gone, made_by_server=False)
    record.port(kept)
    record.bury(gone)
    assert put_right(engine) == [
        f"claim of deleted server {gone}",
        f"ports of deleted server {gone}",
    ]
    assert [c.server_id for c in rows(engine, Claim)] == [kept]
    left = {p.id: p.device_id for p in rows(engine, Port)}
    assert left[own] == ""
    assert port not in left
    assert {f.port_id for f in rows(engine, FixedIp)} == set(left)
    assert put_right(engine) == []


def test_what_a_server_holds_whose_delete_still_runs_is_left_to_it(
    engine: Engine, record: Record
) -> None:
    gone = record.server()
    record.port(gone)
    record.bury(gone)
    record.operation(gone, "running", lifecycle="delete")
    assert put_right(engine) == []


def test_an_active_server_counts_as_built(engine: Engine, record: Record) -> None:
    record.server()
    [claim] = rows(engine, Claim)
    record.change(Claim, claim.id, building=True)
    assert len(put_right(engine)) == 1
    assert not rows(engine, Claim)[0].building


# --- retention


def forgotten(engine: Engine) -> int:
    before = now() - timedelta(days=90)
    with transaction(engine) as session:
        found = deleted_before(session, before)
        everything = list(session.exec(select(Server.id)))
        done = forget_deleted(session, everything, before)
    assert len(done) == len(found)
    return len(done)


def test_everything_of_a_server_that_was_deleted_long_ago_is_forgotten(
    engine: Engine, record: Record
) -> None:
    servers = {}
    for name, deleted_at in (("alive", None), ("lately", now()), ("long ago", LONG_AGO)):
        server_id = servers[name] = record.server(host=None, deleted_at=deleted_at)
        operation_id = record.operation(server_id, "succeeded")
        record.add(
            OperationEvent(operation_id=operation_id, name="e"),
            Decision(operation_id=operation_id, server_id=server_id, attempt=1),
            ServerFault(server_id=server_id, message="m"),
            ServerTag(server_id=server_id, tag="t"),
        )
    assert forgotten(engine) == 1
    for table in (
        Server,
        Operation,
        OperationEvent,
        Decision,
        ServerFault,
        ServerTag,
    ):
        assert len(rows(engine, table)) == 2, table
    assert servers["long ago"] not in {s.id for s in rows(engine, Server)}
    assert forgotten(engine) == 0


def test_a_server_that_still_holds_something_is_not_forgotten(
    engine: Engine, record: Record
) -> None:
    claimed, wired, busy = record.server(), record.server(host=None), record.server(host=None)
    record.port(wired)
    record.operation(busy, "running")
    for server_id in (claimed, wired, busy):
        record.change(Server, server_id, deleted_at=LONG_AGO)
    assert forgotten(engine) == 0
    with reading(engine) as session:
        assert (
            len(session.exec(select(Server.id).where(col(Server.deleted_at).is_not(None))).all())
            == 3
        )
