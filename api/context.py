"""Who is asking and what a handler may use, as aliases that make a signature read as a sentence.

A dependency that does not block is ``async``: FastAPI sends any other to a thread of its own.

@router.get("/servers/{server_id}")
def show_server(server_id: str, who: Annotated[Caller, allow("servers:show")], db: Db) -> ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from anyio import Semaphore
from anyio.lowlevel import RunVar
from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from api.answers import READS, ask, ask_first
from api.idempotency import exchange_of
from api.launch import Launcher
from api.policy import Caller, authorize
from api.tail import Tail
from api.tokens import DENIED, Tokens
from db.session import read_session, write_session
from domain.errors import Unauthorized
from runtime.logs import note
from runtime.sealing import Sealer
from runtime.settings import Settings

WRITERS = 32
"""Requests of a process that may write at once. Each may keep a thread waiting for another's lock, and
whoever holds that lock needs a thread to go on: of the 40 there are, some must stay free."""
_writers: RunVar[Semaphore] = RunVar("writers")
_AFTERWARDS = "afterwards"


@dataclass(frozen=True, slots=True)
class Cloud:
    """What every handler shares; ``build_app`` puts one into each service's ``app.state.cloud``."""

    settings: Settings
    engine: Engine
    tokens: Tokens
    launcher: Launcher
    sealer: Sealer
    tail: Tail = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tail", Tail(self.engine))  # frozen


async def get_cloud(request: Request) -> Cloud:
    """The cloud this request came to."""
    return cloud_of(request)


def cloud_of(request: Request) -> Cloud:
    """The same, where there is no dependency to have."""
    cloud: Cloud = request.app.state.cloud
    return cloud


async def get_session(request: Request) -> AsyncIterator[Session]:
    """A session for one request: committed when the handler returns, rolled back when it raises.

    Reads (GET, HEAD) never take the write lock. The commit happens before the response leaves, and then
    what ``after_commit`` was given.
    """
    cloud = cloud_of(request)
    if request.method in READS:
        with read_session(cloud.engine) as session:
            yield session
        return
    exchange = exchange_of(request)
    if exchange is not None:
        await run_in_threadpool(exchange.look)
    async with _turn():
        with write_session(cloud.engine) as session:
            if exchange is not None:
                exchange.watch(session)
            yield session
            if session.in_transaction():
                await run_in_threadpool(session.commit)
    for call in session.info.get(_AFTERWARDS, ()):
        await run_in_threadpool(call)


def _turn() -> Semaphore:
    """One for each event loop."""
    try:
        return _writers.get()
    except LookupError:
        _writers.set(Semaphore(WRITERS))
        return _writers.get()


def release(session: Session) -> None:
    """Let the database go before something that takes its time; nothing may have been written yet. What was
    read can still be read, and is no longer the session's."""
    session.expunge_all()
    session.rollback()


def after_commit(session: Session, call: Callable[[], Any]) -> None:
    """Do this once the request's session is committed: tell hosts, for example, what they can now read."""
    session.info.setdefault(_AFTERWARDS, []).append(call)


async def get_caller(request: Request) -> Caller:
    """The owner of ``X-Auth-Token``; Unauthorized without a valid one. Whether it still stands is asked
    before the handler runs, and before any key is looked for."""
    token = request.headers.get("x-auth-token")
    if not token:
        raise Unauthorized(DENIED)
    cloud = cloud_of(request)
    opened = cloud.tokens.open(token)
    standing = partial(cloud.tokens.check_standing, token=opened)
    caller = opened.caller
    note(user_id=caller.user_id, project_id=caller.project_id)
    exchange = exchange_of(request)
    if exchange is not None:  # its key may be answered before any handler runs
        await run_in_threadpool(ask, cloud.engine, standing)
        exchange.came_from(caller)
    else:
        await ask_first(request, cloud.engine, standing)
    return caller


def allow(rule: str) -> Any:
    """A dependency that yields the Caller if this policy rule holds, else 401 or 403."""

    async def check(caller: Annotated[Caller, Depends(get_caller)]) -> Caller:
        authorize(caller, rule)
        return caller

    check.rule = rule  # type: ignore[attr-defined]  # read by the test that walks all routes
    return Depends(check)


Db = Annotated[Session, Depends(get_session, scope="function")]
TheCloud = Annotated[Cloud, Depends(get_cloud)]
