"""Idempotency keys: claimed with what they guard, waited for, given back, forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import cast

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import Session, col, select, update
from temporalio.client import Client

from activities.control.records import Records
from activities.control.sweep import Sweep
from db.idempotency import KEPT, IdempotencyKey, Keyed, Taken, claim_key, find_key
from db.network import Network
from db.session import now, reading, transaction, write_session
from runtime.settings import Settings

AT_ONCE = 20


def keyed(request: str, key: str = "k", scope: str = "project-demo", user: str = "u") -> Keyed:
    return Keyed(scope, user, key, "print", request)


def claim(engine: Engine, asked: Keyed) -> None:
    with transaction(engine) as session:
        claim_key(session.connection(), asked)


def age(engine: Engine, key: str, by: timedelta) -> None:
    with transaction(engine) as session:
        mine = col(IdempotencyKey.key) == key
        session.exec(update(IdempotencyKey).where(mine).values(created_at=now() - by))


@pytest.fixture
def other(engine: Engine) -> Iterator[Session]:
    """A transaction of somebody else that has claimed the key ``k``."""
    with write_session(engine) as session:
        claim_key(session.connection(), keyed("first"))
        yield session


def test_a_key_is_taken_once_its_request_has_committed(engine: Engine) -> None:
    claim(engine, keyed("first"))
    with pytest.raises(Taken):
        claim(engine, keyed("second"))
    claim(engine, keyed("first"))  # its own next transaction


def test_a_key_belongs_to_one_user_in_one_scope(engine: Engine) -> None:
    claim(engine, keyed("first"))
    claim(engine, keyed("second", scope="project-alt"))
    claim(engine, keyed("third", user="v"))
    claim(engine, keyed("fourth", key="l"))
    with reading(engine) as session:
        assert len(session.exec(select(IdempotencyKey)).all()) == 4


def test_who_asks_at_the_same_time_waits_and_finds_the_key_taken(
    engine: Engine, other: Session
) -> None:
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(claim, engine, keyed("second"))
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        other.commit()
        with pytest.raises(Taken):
            second.result(timeout=30)


def test_who_waits_for_a_request_that_fails_gets_the_key(engine: Engine, other: Session) -> None:
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(claim, engine, keyed("second"))
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        other.rollback()
        second.result(timeout=30)
    with reading(engine) as session:
        found = find_key(session, keyed("any"))
        assert found is not None
        assert found.request_id == "second"


def test_after_a_day_a_key_is_free_again(engine: Engine) -> None:
    claim(engine, keyed("first"))
    age(engine, "k", KEPT - timedelta(minutes=1))
    with pytest.raises(Taken):
        claim(engine, keyed("second"))
    age(engine, "k", KEPT + timedelta(minutes=1))
    with reading(engine) as session:
        assert find_key(session, keyed("second")) is None
    claim(engine, keyed("second"))
    with reading(engine) as session:
        assert [r.request_id for r in session.exec(select(IdempotencyKey))] == ["second"]


async def test_the_sweep_forgets_old_keys_only(engine: Engine, settings: Settings) -> None:
    claim(engine, keyed("first", key="old"))
    claim(engine, keyed("second", key="new"))
    age(engine, "old", KEPT + timedelta(minutes=1))
    await Sweep(cast("Client", None), engine, Records(engine, settings)).run()
    with reading(engine) as session:
        assert [r.key for r in session.exec(select(IdempotencyKey))] == ["new"]


def test_twenty_equal_requests_at_once_have_one_effect_and_one_answer(
    client: TestClient, engine: Engine
) -> None:
    def ask(_: int) -> tuple[int, str, str | None]:
        answer = client.post(
            "/network/v2.0/networks",
            json={"network": {"name": "once"}},
            headers={"Idempotency-Key": "same"},
        )
        return answer.status_code, answer.text, answer.headers.get("Idempotency-Replayed")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(ask, range(AT_ONCE)))
    assert {(status, text) for status, text, _ in answers} == {(201, answers[0][1])}
    assert Counter(replayed for *_, replayed in answers) == {None: 1, "true": AT_ONCE - 1}
    with reading(engine) as session:
        assert [n.name for n in session.exec(select(Network))] == ["once"]
