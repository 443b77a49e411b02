"""The thread that runs a handler also asks what must be asked before it, and writes its answer.

FastAPI would send what a handler returns to a second thread, to be checked, and turn it into JSON in the
event loop, where a long list keeps every other request waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, TypeVar

from anyio import Semaphore
from anyio.lowlevel import RunVar
from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.exceptions import ResponseValidationError
from fastapi.routing import APIRoute
from pydantic_core import to_json
from sqlalchemy import Engine
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from db.session import reading

READS = frozenset({"GET", "HEAD"})
"""Methods of requests that change nothing."""
TURN_S = 0.02
"""A read that takes longer no longer keeps the others waiting; most take a tenth of it."""
T = TypeVar("T")
Question = Callable[[Session], object]


@dataclass(slots=True)
class _Visit:
    """The thread's visit that a request is going to make."""

    engine: Engine
    first: Question | None = None


# The scope says whose request a question belongs to; the context brings the visit to the handler, which is
# given nothing but its own arguments.
_SCOPE = "visit"
_visit: ContextVar[_Visit] = ContextVar("visit")
_one_read: RunVar[Semaphore] = RunVar("one read")


async def ask_first(request: Request, engine: Engine, question: Question) -> None:
    """Have this asked of the database before the handler runs; when it raises, that is the answer.

    By the thread that runs the handler, where the route is an ``AnsweringRoute`` with a blocking handler:
    what other dependencies do comes before it. Else now.
    """
    visit: _Visit | None = request.scope.get(_SCOPE)
    if visit is not None:
        visit.first = question
    else:
        await run_in_threadpool(ask, engine, question)


def ask(engine: Engine, question: Question) -> None:
    """Ask it in a transaction of its own. Blocks."""
    with reading(engine) as session:
        question(session)


def json_answer(content: Any) -> Response:
    """200 with this as JSON, unchecked: for a handler that makes its answer of plain values itself."""
    return Response(to_json(content), media_type="application/json")


class AnsweringRoute(APIRoute):
    """A route whose blocking handler is one visit to a thread, with what is asked before it, its answer's
    JSON and the end of its read transaction. What goes over the wire, and the OpenAPI document, are
    FastAPI's.

    On SQLite the reads of a process take turns. Threads of one interpreter cannot run at once anyway, and
    each statement has them fight for who goes on: eight at a time cost twice what they cost one by one.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        waits = iscoroutinefunction(endpoint) or isasyncgenfunction(endpoint)
        self._visits = not waits and not isgeneratorfunction(endpoint)
        super().__init__(path, self._visiting(endpoint) if self._visits else endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        return partial(self._expecting, handle) if self._visits else handle

    @staticmethod
    async def _expecting(
        handle: Callable[[Request], Coroutine[Any, Any, Response]], request: Request
    ) -> Response:
        visit = _Visit(request.app.state.cloud.engine)
        request.scope[_SCOPE] = visit
        token = _visit.set(visit)
        try:
            answer = await handle(request)
        except Exception:  # raised again: but who may not ask is not told what else is wrong
            if visit.first is not None:
                await run_in_threadpool(ask, visit.engine, visit.first)
            raise
        finally:
            _visit.reset(token)
        if visit.first is not None:
            raise RuntimeError(f"{request.url.path} was answered without asking who asks")
        return answer

    def _visiting(self, endpoint: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(endpoint)
        async def answer(**arguments: Any) -> Any:
            visit = _visit.get()
            sessions = _sessions_of(arguments) if self._reads else []
            work = partial(self._answer, visit, endpoint, arguments, sessions)
            if sessions and visit.engine.dialect.name == "sqlite":
                return await _in_turn(work)
            return await run_in_threadpool(work)

        return answer

    @property
    def _reads(self) -> bool:
        return (self.methods or READS) <= READS

    def _answer(
        self,
        visit: _Visit,
        endpoint: Callable[..., Any],
        arguments: dict[str, Any],
        sessions: list[Session],
    ) -> Any:
        try:
            if (first := visit.first) is not None:
                visit.first = None
                if sessions:
                    first(sessions[0])
                else:  # a session that may write would take the write lock for it
                    ask(visit.engine, first)
            return self._written(endpoint(**arguments), arguments)
        finally:
            for session in sessions:
                # From here: on PostgreSQL to give a connection back asks the server.
                session.close()

    def _written(self, result: Any, arguments: dict[str, Any]) -> Any:
        field = self.response_field
        own_class = not isinstance(self.response_class, DefaultPlaceholder)
        if field is None or own_class or isinstance(result, Response):
            return result
        value, errors = field.validate(result, {}, loc=("response",))
        if errors:
            raise ResponseValidationError(errors=errors, body=result)
        content = field.serialize_json(
            value,
            include=self.response_model_include,
            exclude=self.response_model_exclude,
            by_alias=self.response_model_by_alias,
            exclude_unset=self.response_model_exclude_unset,
            exclude_defaults=self.response_model_exclude_defaults,
            exclude_none=self.response_model_exclude_none,
        )
        # Where a handler asks for the response, it is to put headers or a status into it.
        given: Response | None = arguments.get(self.dependant.response_param_name or "")
        status = (given and given.status_code) or self.status_code or 200
        answer = Response(content, status, media_type="application/json")
        if given is not None:
            answer.headers.raw.extend(given.headers.raw)
        return answer


def _sessions_of(arguments: dict[str, Any]) -> list[Session]:
    """Those among a handler's arguments; a list's arguments come with theirs."""
    given = (getattr(value, "db", value) for value in arguments.values())
    return [value for value in given if isinstance(value, Session)]


async def _in_turn(work: Callable[[], T]) -> T:
    """Do it in a thread while no other does such work, or at least none that began within ``TURN_S``."""
    try:
        turn = _one_read.get()
    except LookupError:  # one for each event loop
        turn = Semaphore(1, fast_acquire=True)
        _one_read.set(turn)
    await turn.acquire()
    with ExitStack() as leaving:
        leaving.callback(turn.release)
        late = asyncio.get_running_loop().call_later(TURN_S, leaving.close)
        leaving.callback(late.cancel)
        return await run_in_threadpool(work)
