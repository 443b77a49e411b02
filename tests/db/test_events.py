"""The outbox: what is told of operations, in whose transaction, in which order, and for how long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from threading import Barrier, Thread
from threading import Event as Flag

import pytest
from cloudevents.core.formats.json import JSONFormat
from sqlalchemy import Engine
from sqlmodel import Session, col, select

from db.events import (
    EVERYTHING,
    Event,
    Wanted,
    as_cloud_event,
    emit,
    get_mark,
    newest_event,
    prune_events,
    pruned_up_to,
    read_events,
    set_mark,
)
from db.operations import Operation, OperationEvent, close_events, end_operation, open_event
from db.servers import Server
from db.session import now, open_engine, reading, transaction, write_session
from domain.events import EventType
from domain.states import OperationState
from tests.postgres import Postgres


def an_event(number: int = 0, **given: object) -> Event:
    base = {"type": "t", "operation_id": "o", "server_id": "s", "project_id": "p"}
    return Event(**(base | {"data": {"number": number}} | given))


def accept(session: Session, **given: object) -> Operation:
    """A server with an accepted create."""
    server = Server(project_id="p", user_id="u", name="s", flavor={}, image={})
    session.add(server)
    session.flush()
    base = {"request_id": "r", "action": "create", "lifecycle": "create", "user_id": "u"}
    operation = Operation(**(base | {"server_id": server.id, "project_id": "p"} | given))
    session.add(operation)
    return operation


def told(engine: Engine) -> list[Event]:
    with reading(engine) as session:
        return list(session.exec(select(Event).order_by(col(Event.id))))


def kinds(engine: Engine) -> list[str]:
    return [e.type.rpartition(".")[2] for e in told(engine)]


def test_an_operation_tells_its_life_by_being_written(engine: Engine) -> None:
    with transaction(engine) as session:
        operation = accept(session)
    with transaction(engine) as session:
        operation = session.get_one(Operation, operation.id)
        operation.state, operation.host = OperationState.RUNNING, "host-1"
        session.add(operation)
        open_event(session, operation, "host-1")
    with transaction(engine) as session:
        operation = session.get_one(Operation, operation.id)
        operation.state, operation.error = OperationState.WAITING_OPERATOR, "disk on fire"
        session.add(operation)
        close_events(session, operation.id, "disk on fire")
    with transaction(engine) as session:
        operation = session.get_one(Operation, operation.id)
        operation.state, operation.error = OperationState.RUNNING, None
        session.add(operation)
    with transaction(engine) as session:
        end_operation(session, session.get_one(Operation, operation.id), OperationState.SUCCEEDED)
    assert kinds(engine) == [
        "accepted", "started", "step", "step", "waiting", "resumed", "ended",
    ]  # fmt: skip
    began, stopped, waits = told(engine)[2:5]
    assert (began.host, began.data["step"]["result"]) == ("host-1", None)
    assert stopped.data["step"]["result"] == "Error"
    assert stopped.data["step"]["details"] == waits.data["error"] == "disk on fire"
    assert told(engine)[-1].data["state"] == "succeeded"
    assert {e.operation_id for e in told(engine)} == {operation.id}


def test_the_end_of_a_step_is_told_before_the_end_of_its_operation(engine: Engine) -> None:
    with transaction(engine) as session:
        operation = accept(session)
        operation.state = OperationState.RUNNING
        open_event(session, operation, None)
    with transaction(engine) as session:
        ending = session.get_one(Operation, operation.id)
        end_operation(session, ending, OperationState.FAILED, "why")
    assert kinds(engine) == ["accepted", "started", "step", "step", "ended"]


def test_a_change_that_means_nothing_tells_nothing(engine: Engine) -> None:
    with transaction(engine) as session:
        operation = accept(session)
        session.flush()
        session.add(OperationEvent(operation_id=operation.id, name="n"))
    with transaction(engine) as session:
        operation = session.get_one(Operation, operation.id)
        operation.step, operation.percent, operation.state = "copy", 50, "accepted"
        session.add(operation)
        step = session.exec(select(OperationEvent)).one()
        step.details = "half"
        session.add(step)
    assert kinds(engine) == ["accepted", "step"]


def test_what_is_rolled_back_is_not_told(engine: Engine) -> None:
    with write_session(engine) as session:
        accept(session)
        session.rollback()
        session.commit()
        accept(session)
        session.flush()
        session.close()  # and used again
        accept(session)
        session.commit()
    assert kinds(engine) == ["accepted"]


def test_a_savepoint_that_is_rolled_back_takes_only_its_own_events_along(engine: Engine) -> None:
    with transaction(engine) as session:
        emit(session, an_event(1))
        with session.begin_nested() as given_up:
            emit(session, an_event(2))
            with session.begin_nested():
                emit(session, an_event(3))
            given_up.rollback()
        with session.begin_nested():
            emit(session, an_event(4))
    assert [e.data["number"] for e in told(engine)] == [1, 4]


def test_events_are_in_the_order_in_which_they_were_emitted(engine: Engine) -> None:
    with transaction(engine) as session:
        for number in range(300):
            emit(session, an_event(number))
    assert [e.data["number"] for e in told(engine)] == list(range(300))


def test_who_resumes_behind_an_event_never_skips_one_that_commits_late(engine: Engine) -> None:
    """Many writers at once; a reader that goes on from what it saw gets each event once."""
    writers, each, done = 4, 25, Flag()
    ready = Barrier(writers + 1)

    def write(writer: int) -> None:
        ready.wait()
        for number in range(each):
            with transaction(engine) as session:
                emit(session, an_event(number, server_id=str(writer)))

    threads = [Thread(target=write, args=(n,)) for n in range(writers)]
    for thread in threads:
        thread.start()
    ready.wait()
    seen: list[tuple[str, int]] = []
    position = 0
    while not done.is_set():
        if not any(thread.is_alive() for thread in threads):
            done.set()  # one more look
        with reading(engine) as session:
            batch = read_events(session, position, EVERYTHING, 10_000)
        position = batch.position
        seen += [(e.server_id, e.data["number"]) for e in batch.events]
    assert len(seen) == len(set(seen)) == writers * each
    for writer in range(writers):
        assert [n for s, n in seen if s == str(writer)] == list(range(each))


@pytest.fixture
def concurrent(postgres: Postgres) -> Iterator[Engine]:
    """A database in which transactions run beside each other; SQLite has one writer at a time."""
    engine = open_engine(postgres.fresh())
    yield engine
    engine.dispose()


@pytest.mark.postgres
def test_a_transaction_that_emitted_first_and_commits_last_comes_last(concurrent: Engine) -> None:
    """The id is drawn at the commit, so a long transaction leaves no hole behind."""
    engine = concurrent
    with transaction(engine) as slow:
        emit(slow, an_event(1))
        slow.flush()
        with transaction(engine) as quick:
            emit(quick, an_event(2))
        with reading(engine) as session:
            assert read_events(session, 0, EVERYTHING, 10).position == 1
    assert [e.data["number"] for e in told(engine)] == [2, 1]


@pytest.mark.postgres
def test_transactions_that_have_emitted_do_not_wait_for_each_other(concurrent: Engine) -> None:
    """The lock is the last one that a transaction takes."""
    engine = concurrent
    with transaction(engine) as session:
        first, second = accept(session), accept(session)
        session.flush()
        servers = [first.server_id, second.server_id]
    with transaction(engine) as one:
        one.get_one(Server, servers[0], with_for_update=True)
        with transaction(engine) as two:
            emit(two, an_event(2))
            two.flush()
            two.get_one(Server, servers[1], with_for_update=True)
            emit(one, an_event(1))
            one.flush()  # would wait here for what `two` holds
    assert len(told(engine)) == 4


@pytest.fixture
def ten(engine: Engine) -> Engine:
    """Ten events, the odd ones in project ``q``, all an hour old but the last three."""
    with transaction(engine) as session:
        for n in range(1, 11):
            age = timedelta(hours=1 if n < 8 else 0)
            project = "q" if n % 2 else "p"
            emit(session, an_event(n, project_id=project, server_id=f"s{n}", time=now() - age))
    return engine


def test_a_reader_gets_only_what_it_asks_for_and_still_moves_on(ten: Engine) -> None:
    with reading(ten) as session:
        batch = read_events(session, 0, Wanted(project_id="q"), 3)
        assert ([e.id for e in batch.events], batch.position) == ([1, 3, 5], 5)
        batch = read_events(session, 5, Wanted(project_id="q"), 3)
        assert ([e.id for e in batch.events], batch.position) == ([7, 9], 10)
        batch = read_events(session, 2, Wanted(server_id="s2"), 3)
        assert (batch.events, batch.position) == ([], 10)
        batch = read_events(session, 10, EVERYTHING, 3)
        assert (batch.events, batch.position) == ([], 10)
        batch = read_events(session, 0, Wanted(types=frozenset({"other"})), 3)
        assert (batch.events, batch.position) == ([], 10)


def test_old_events_are_pruned_in_bounded_bites_and_remembered_as_gone(ten: Engine) -> None:
    before = now() - timedelta(minutes=30)
    with transaction(ten) as session:
        assert prune_events(session, before, 5) == 5
        assert pruned_up_to(session) == 5
        assert prune_events(session, before, 5) == 2
        assert prune_events(session, before, 5) == 0
        assert pruned_up_to(session) == 7
    assert [e.id for e in told(ten)] == [8, 9, 10]


def test_ids_of_pruned_events_never_come_again(ten: Engine) -> None:
    with transaction(ten) as session:
        assert prune_events(session, now() + timedelta(hours=1), 100) == 10
        assert newest_event(session) == 10
    with transaction(ten) as session:
        emit(session, an_event())
    assert [e.id for e in told(ten)] == [11]


def test_a_mark_never_goes_back(engine: Engine) -> None:
    with transaction(engine) as session:
        assert get_mark(session, "m") is None
        for position in (3, 5, 4):
            set_mark(session, "m", position)
        assert get_mark(session, "m") == 5


def test_an_event_is_a_cloud_event(engine: Engine) -> None:
    with transaction(engine) as session:
        operation = accept(session)
        operation.state, operation.host = OperationState.RUNNING, "host-1"
        open_event(session, operation, "host-1")
        close_events(session, operation.id, "host-1 burns")
    step = told(engine)[-1]
    text = as_cloud_event(step, "https://cloud/operations", for_admin=True)
    seen = JSONFormat().read(None, text)
    assert (seen.get_id(), seen.get_type()) == (step.uid, EventType.STEP)
    assert (seen.get_source(), seen.get_subject()) == ("https://cloud/operations", step.server_id)
    assert (seen.get_time(), seen.get_extension("partitionkey")) == (step.time, step.server_id)
    assert int(seen.get_extension("sequence")) == step.id
    data = json.loads(text)["data"]
    assert (data["host"], data["step"]["details"]) == ("host-1", "host-1 burns")
    assert (data["lifecycle"], data["request_id"]) == ("create", "r")


def test_who_is_no_admin_does_not_learn_the_host(engine: Engine) -> None:
    with transaction(engine) as session:
        operation = accept(session)
        operation.host = "host-1"
        open_event(session, operation, "host-1")
        close_events(session, operation.id, "host-1 burns")
    for event in told(engine):
        assert "host-1" not in as_cloud_event(event, "https://cloud/operations", for_admin=False)
