"""The event stream over a real server: live, replayed, resumed, only the caller's, and ended when it must."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api import events as stream
from api import tail
from api.context import Cloud
from db.events import Event, emit, prune_events
from db.session import now, transaction
from domain.errors import Unauthorized
from tests.asgi import app_for

EVENTS = "/operations/v1/events"
STARTED, ENDED = "duranova.operation.started", "duranova.operation.ended"
Message = dict[str, str]


def tell(engine: Engine, *numbers: int, **given: Any) -> None:
    base = {"type": STARTED, "operation_id": "o", "server_id": "s", "project_id": "project-demo"}
    with transaction(engine) as session:
        for number in numbers:
            emit(session, Event(**(base | {"data": {"number": number}} | given)))


class Streams:
    """A served API and clients of its event stream."""

    def __init__(self, url: str, cloud: Cloud) -> None:
        self.url = url
        self.cloud = cloud

    @asynccontextmanager
    async def open(
        self, who: str = "member", query: str = "", **headers: str
    ) -> AsyncIterator[AsyncIterator[Message]]:
        """Messages as they come; the first one only says where the stream begins."""
        given = {"X-Auth-Token": who, **headers}
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=20) as client,
            client.stream("GET", f"{EVENTS}{query}", headers=given) as answer,
        ):
            assert answer.status_code == 200, await answer.aread()
            yield _messages(answer)

    async def take(
        self, count: int, who: str = "member", query: str = "", **h: str
    ) -> list[Message]:
        """The first events of a stream, then it is cut."""
        async with self.open(who, query, **h) as messages:
            return [m async for m in _first(messages, count)]


async def _messages(answer: httpx.Response) -> AsyncIterator[Message]:
    message: Message = {}
    async for line in answer.aiter_lines():
        if not line and message:
            yield message
            message = {}
        elif line:
            field, _, value = line.partition(": ")
            message[field] = value


async def _first(messages: AsyncIterator[Message], count: int) -> AsyncIterator[Message]:
    async for message in messages:
        if "data" in message:
            yield message
            count -= 1
        if not count:
            return


def numbers(messages: list[Message]) -> list[int]:
    return [json.loads(m["data"])["data"]["number"] for m in messages]


@pytest.fixture
async def streams(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Streams]:
    monkeypatch.setattr(tail, "LOOK_EVERY_S", 0.02)
    config = uvicorn.Config(
        app_for(cloud), port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=10
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110  # it has no event to wait for
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Streams(f"http://127.0.0.1:{port}", cloud)
    cloud.tail.close()
    server.should_exit = True
    await asyncio.wait_for(serving, 5)


async def test_a_stream_begins_now_and_shows_what_happens(streams: Streams, engine: Engine) -> None:
    tell(engine, 1)
    async with streams.open() as messages:
        hello = await anext(messages)
        assert (hello["id"], "data" in hello) == ("1", False)
        tell(engine, 2)
        message = await anext(messages)
    assert (message["id"], message["event"]) == ("2", STARTED)
    event = json.loads(message["data"])
    assert (event["specversion"], event["sequence"], event["type"]) == ("1.0", f"{2:020}", STARTED)
    assert (event["subject"], event["source"]) == ("s", "http://testserver/operations")


async def test_who_comes_back_after_a_disconnect_misses_nothing_and_gets_nothing_twice(
    streams: Streams, engine: Engine
) -> None:
    seen: list[Message] = []
    at = "0"
    for turn in range(4):
        # some happen while nobody listens, some while somebody does
        tell(engine, *range(turn * 10, turn * 10 + 5))
        async with streams.open(**{"Last-Event-ID": at}) as messages:
            seen += [m async for m in _first(messages, 5)]
            tell(engine, *range(turn * 10 + 5, turn * 10 + 10))
            seen += [m async for m in _first(messages, 3)]  # and is cut off before the others
        at = seen[-1]["id"]
    seen += await streams.take(8, **{"Last-Event-ID": at})
    assert numbers(seen) == list(range(40))


async def test_the_first_message_is_a_place_to_resume_at(streams: Streams, engine: Engine) -> None:
    tell(engine, 1)
    async with streams.open() as messages:
        at = (await anext(messages))["id"]
    tell(engine, 2)
    assert numbers(await streams.take(1, **{"Last-Event-ID": at})) == [2]
    assert numbers(await streams.take(1, query=f"?after={at}")) == [2]


async def test_a_stream_from_0_replays_all_that_is_kept(streams: Streams, engine: Engine) -> None:
    tell(engine, *range(1, 1204))  # more than fits into one bite
    assert numbers(await streams.take(1203, query="?after=0")) == list(range(1, 1204))


async def test_who_falls_behind_what_is_in_memory_goes_on_from_the_record(
    streams: Streams, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "_KEPT", 3)
    async with streams.open() as messages:
        await anext(messages)
        tell(engine, *range(50))
        assert numbers([m async for m in _first(messages, 50)]) == list(range(50))


async def test_only_the_callers_project_is_shown_and_no_host(
    streams: Streams, engine: Engine
) -> None:
    tell(engine, 1, project_id="project-alt", host="host-1")
    tell(engine, 2, host="host-1")
    ours = await streams.take(1, "reader", "?after=0")
    theirs = await streams.take(1, "alt", "?after=0")
    everything = await streams.take(2, "admin", "?after=0")
    assert (numbers(ours), numbers(theirs), numbers(everything)) == ([2], [1], [1, 2])
    assert "host" not in "".join(m["data"] for m in ours + theirs).replace("://testserver", "")
    assert json.loads(everything[0]["data"])["data"]["host"] == "host-1"
    async with streams.open("reader") as messages:  # and the same of what comes
        await anext(messages)
        tell(engine, 3, project_id="project-alt", host="host-1")
        tell(engine, 4, host="host-1")
        live = await anext(messages)
    assert (numbers([live]), "host-1" in live["data"]) == ([4], False)


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("server_id=a", [1, 2]),
        ("operation_id=b", [2]),
        (f"type={ENDED}", [2, 3]),
        (f"type={ENDED}&type={STARTED}", [1, 2, 3]),
        (f"type={ENDED}&server_id=c", [3]),
    ],
)
async def test_a_stream_is_narrowed_by_its_query(
    streams: Streams, engine: Engine, query: str, shown: list[int]
) -> None:
    tell(engine, 1, server_id="a", operation_id="a")
    tell(engine, 2, server_id="a", operation_id="b", type=ENDED)
    tell(engine, 3, server_id="c", operation_id="c", type=ENDED)
    replayed = await streams.take(len(shown), query=f"?after=0&{query}")
    assert numbers(replayed) == shown


async def test_a_stream_in_which_nothing_happens_still_moves_its_place_on(
    streams: Streams, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHECK_EVERY_S", 0.1)
    async with streams.open(query="?server_id=quiet") as messages:
        assert (await anext(messages))["id"] == "0"
        tell(engine, 1, 2, 3)
        assert await anext(messages) == {"id": "3"}


async def test_a_stream_ends_when_its_token_no_longer_stands(
    streams: Streams, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHECK_EVERY_S", 0.1)

    def refuse(*_: Any) -> None:
        raise Unauthorized("revoked")

    async with streams.open() as messages:
        await anext(messages)
        monkeypatch.setattr(cloud.tokens, "validate", refuse)
        async with asyncio.timeout(5):
            assert [m async for m in messages] == [{"": "the token is no longer valid"}]


async def test_streams_end_when_the_server_does(streams: Streams) -> None:
    async with streams.open() as messages:
        await anext(messages)
        streams.cloud.tail.close()
        async with asyncio.timeout(5):
            assert [m async for m in messages] == []


async def test_nobody_looks_for_events_once_the_last_client_has_gone(streams: Streams) -> None:
    async with streams.open() as one, streams.open() as two:
        await anext(one)
        await anext(two)
        assert streams.cloud.tail._looking is not None
    async with asyncio.timeout(5):
        while streams.cloud.tail._looking is not None:  # noqa: ASYNC110  # no event to wait for
            await asyncio.sleep(0.02)


async def test_many_streams_cost_one_query_at_a_time(streams: Streams, engine: Engine) -> None:
    from tests.api.conftest import counting  # noqa: PLC0415  # beside its use

    async with streams.open() as a, streams.open() as b, streams.open() as c, streams.open() as d:
        for messages in (a, b, c, d):
            await anext(messages)
        with counting(engine) as statements:
            tell(engine, 1)
            for messages in (a, b, c, d):
                assert numbers([await anext(messages)]) == [1]
    rows = [s for s in statements if "event.data" in s]
    looks = [s for s in statements if "max(event.id)" in s]
    assert len(rows) <= len(looks)  # the tail's, none for each stream
    assert not [s for s in rows if "project_id =" in s]


def test_what_is_no_longer_kept_is_410_and_0_begins_with_the_oldest(
    client: TestClient, engine: Engine
) -> None:
    tell(engine, 1, 2, 3, time=now() - timedelta(days=8))
    tell(engine, 4)
    with transaction(engine) as session:
        prune_events(session, now() - timedelta(days=7))
    for token in (1, 2):
        answer = client.get(EVENTS, headers={"Last-Event-ID": str(token)})
        assert answer.status_code == 410
        assert "Events up to 3 are no longer kept" in answer.json()["error"]["message"]
    assert client.get(f"{EVENTS}?after=99").status_code == 410


@pytest.mark.parametrize("query", ["after=-1", "after=x", "type=made.up"])
def test_a_query_that_means_nothing_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"{EVENTS}?{query}").status_code == 400


def test_a_resume_token_that_is_none_is_refused(client: TestClient) -> None:
    assert client.get(EVENTS, headers={"Last-Event-ID": "x"}).status_code == 400


def test_who_has_no_role_gets_no_stream(client: TestClient) -> None:
    assert client.get(EVENTS, headers={"X-Auth-Token": "unscoped"}).status_code == 403
