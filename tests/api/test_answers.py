"""What a handler's visit to a thread promises: who asks is settled before it, and reads take turns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, FastAPI
from sqlmodel import select

from api import answers
from api.answers import AnsweringRoute
from api.app import service
from api.context import Cloud, Db, allow
from api.errors import plain_fault
from api.policy import Caller
from db.servers import Server
from db.session import reading
from tests.api.conftest import ServerWorld
from tests.conftest import StaticTokens

WITHIN_S = 20
Handler = Callable[[], Any]


class Doors:
    """One GET route for each handler, behind a token, in a service of their own."""

    def __init__(self, cloud: Cloud) -> None:
        self.router = APIRouter(route_class=AnsweringRoute)
        self.app: FastAPI = service("Doors", "1", [], plain_fault, cloud)

    def add(self, path: str, handler: Handler) -> None:
        @self.router.get(path)
        def read(_who: Annotated[Caller, allow("servers:show")], _db: Db) -> Any:
            return handler()

        self.app.router.routes.extend(self.router.routes[-1:])

    def add_public(self, path: str, handler: Handler) -> None:
        """One that asks nobody, and reads nothing."""

        @self.router.get(path)
        def answer() -> Any:
            return handler()

        self.app.router.routes.extend(self.router.routes[-1:])


@pytest.fixture
def doors(cloud: Cloud) -> Doors:
    return Doors(cloud)


@pytest_asyncio.fixture
async def http(doors: Doors) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(doors.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://doors", headers={"X-Auth-Token": "member"}
    ) as client:
        yield client


async def test_short_reads_never_run_beside_each_other(
    doors: Doors, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "TURN_S", WITHIN_S)  # however slow the machine is
    inside, most = [0], [0]

    def handler() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.001)  # lets any other thread run
        inside[0] -= 1

    doors.add("/short", handler)
    answered = await asyncio.gather(*(http.get("/short") for _ in range(20)))
    assert {a.status_code for a in answered} == {200}
    assert most == [1]


async def test_a_slow_read_keeps_no_other_waiting(doors: Doors, http: httpx.AsyncClient) -> None:
    open_ = threading.Event()
    doors.add("/slow", lambda: open_.wait(WITHIN_S))
    doors.add("/quick", lambda: "here")
    slow = [asyncio.create_task(http.get("/slow")) for _ in range(3)]
    try:
        assert (await asyncio.wait_for(http.get("/quick"), WITHIN_S)).json() == "here"
        assert not any(task.done() for task in slow)
    finally:
        open_.set()
    assert [(await task).json() for task in slow] == [True] * 3


async def test_what_reads_nothing_does_not_stand_in_line(
    doors: Doors, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "TURN_S", 10 * WITHIN_S)
    inside, open_ = threading.Event(), threading.Event()

    def slow() -> bool:
        inside.set()
        return open_.wait(WITHIN_S)

    doors.add("/slow", slow)
    doors.add_public("/alive", lambda: "yes")
    reading_ = asyncio.create_task(http.get("/slow"))
    try:
        await asyncio.to_thread(inside.wait, WITHIN_S)
        assert (await asyncio.wait_for(http.get("/alive"), WITHIN_S)).json() == "yes"
        assert not reading_.done()
    finally:
        open_.set()
    assert (await reading_).json() is True


async def test_a_read_that_fails_gives_its_turn_back(
    doors: Doors, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "TURN_S", 10 * WITHIN_S)  # else it would come back by itself
    doors.add("/wrong", lambda: 1 // 0)
    for _ in range(3):
        assert (await asyncio.wait_for(http.get("/wrong"), WITHIN_S)).status_code == 500


async def test_the_handler_does_not_run_for_a_token_that_was_taken_back(
    doors: Doors, http: httpx.AsyncClient, cloud: Cloud
) -> None:
    seen: list[str] = []
    doors.add("/seen", lambda: seen.append("called"))
    assert isinstance(cloud.tokens, StaticTokens)
    cloud.tokens.revoked.add("member")
    assert (await http.get("/seen")).status_code == 401
    cloud.tokens.revoked.clear()
    assert (await http.get("/seen")).status_code == 200
    assert seen == ["called"]


def test_a_create_leaves_nothing_for_a_token_that_was_taken_back(
    world: ServerWorld, cloud: Cloud
) -> None:
    assert isinstance(cloud.tokens, StaticTokens)
    cloud.tokens.revoked.add("member")
    assert world.post().status_code == 401
    with reading(world.engine) as session:
        assert session.exec(select(Server)).all() == []
