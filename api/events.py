"""GET /operations/v1/events: what happens to operations, as server-sent events that can be resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import StreamingResponse

from api.context import Cloud, TheCloud, allow
from api.policy import Caller, authorize
from db.events import Event, Wanted, as_cloud_event, newest_event, pruned_up_to
from db.session import reading
from domain.errors import Forbidden, Gone, Unauthorized
from domain.events import EventType

router = APIRouter()
RULE = "events:read"
CHECK_EVERY_S = 15.0
"""How often a stream asks whether its token still stands, and sends something, so that no proxy cuts it."""
_RETRY_MS = 2000
_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """Server-sent events. Not FastAPI's: that one reports an error whenever a client leaves while it sends."""

    media_type = "text/event-stream"


class Asked(BaseModel):
    """What the query of a stream may say."""

    server_id: str | None = None
    operation_id: str | None = None
    type: list[EventType] = Field(default_factory=list)
    after: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins and what it shows."""

    position: int
    wanted: Wanted
    for_admin: bool
    token: str


def _start(
    request: Request,
    who: Annotated[Caller, allow(RULE)],
    cloud: TheCloud,
    asked: Annotated[Asked, Query()],
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
) -> Start:
    wanted = Wanted(
        project_id=None if who.is_admin else who.project_id,
        server_id=asked.server_id,
        operation_id=asked.operation_id,
        types=frozenset(asked.type) if asked.type else None,
    )
    # A client that reconnects by itself repeats its URL, so what it saw last counts more.
    given = asked.after if last_event_id is None else last_event_id
    position = _position(cloud, given)
    return Start(position, wanted, who.is_admin, request.headers["x-auth-token"])


def _position(cloud: Cloud, after: int | None) -> int:
    with reading(cloud.engine) as session:
        newest, pruned = newest_event(session), pruned_up_to(session)
    if after is None:
        return newest
    if after == 0:
        return pruned
    if after < pruned:
        raise Gone(f"Events up to {pruned} are no longer kept; after=0 begins with the oldest.")
    if after > newest:
        raise Gone(f"There was no event {after} yet; after=0 begins with the oldest.")
    return after


async def _followed(
    start: Annotated[Start, Depends(_start)], cloud: TheCloud
) -> AsyncIterator[Start]:
    async with cloud.tail.following():
        yield start


@router.get("/v1/events", response_class=EventStream)
async def stream_events(
    start: Annotated[Start, Depends(_followed)], cloud: TheCloud
) -> EventStream:
    """The events of the caller's project (an admin's: everybody's) as CloudEvents, oldest first.

    From now on, or behind the event that ``Last-Event-ID`` or ``after`` names; 0 begins with the oldest that
    is kept. 410 when the events behind it are no longer kept.
    """
    return EventStream(_messages(cloud, start), headers=_UNBUFFERED)


async def _messages(cloud: Cloud, start: Start) -> AsyncIterator[bytes]:
    position = told = start.position
    yield format_sse_event(id=str(position), retry=_RETRY_MS)
    clock = asyncio.get_running_loop().time
    check_at = clock() + CHECK_EVERY_S
    while not cloud.tail.closed:
        try:
            batch = await cloud.tail.after(position, start.wanted, check_at - clock())
        except SQLAlchemyError:
            return  # the client comes again, and misses nothing
        for event in batch.events:
            told = event.id or told
            yield _message(cloud, start, event)
        position = batch.position
        if clock() < check_at:
            continue
        if not await asyncio.to_thread(_still_allowed, cloud, start.token):
            yield format_sse_event(comment="the token is no longer valid")
            return
        # A stream that shows nothing tells its place too: it would be too old to resume at one day.
        yield KEEPALIVE_COMMENT if told == position else format_sse_event(id=str(position))
        told, check_at = position, clock() + CHECK_EVERY_S


def _message(cloud: Cloud, start: Start, event: Event) -> bytes:
    source = f"{cloud.settings.public_url}/operations"
    text = as_cloud_event(event, source, for_admin=start.for_admin)
    return format_sse_event(id=str(event.id), event=event.type, data_str=text)


def _still_allowed(cloud: Cloud, token: str) -> bool:
    try:
        with reading(cloud.engine) as session:
            authorize(cloud.tokens.validate(session, token), RULE)
    except (Unauthorized, Forbidden):
        return False
    except SQLAlchemyError:
        return True  # it is asked again
    return True
