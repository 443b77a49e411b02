"""Webhooks get every event, signed and in order, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine
from standardwebhooks import Webhook
from temporalio.testing import ActivityEnvironment

from activities.control import webhooks
from activities.control.webhooks import Webhooks
from db.events import Event, emit, event_after, get_mark, prune_events, webhook_mark
from db.session import now, reading, transaction
from domain.errors import Unavailable
from domain.events import EventType
from runtime.settings import Settings
from runtime.temporal import connect
from tests.temporal_server import temporal_server
from workflows.contract import Turn

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
Answer = Callable[[int], int]
"""The number of a request, from 0 → the status to answer."""


class Receiver:
    """Somebody's webhook: keeps what it accepted, if the signature is right."""

    def __init__(self, answer: Answer) -> None:
        self.requests = 0
        self.accepted: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = answer(outer.requests)
                outer.requests += 1
                event = Webhook(SECRET).verify(body, dict(self.headers.items()))
                assert self.headers["content-type"] == "application/cloudevents+json"
                assert self.headers["webhook-id"] == event["id"]
                if status == 200:
                    outer.accepted.append(event)
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook?token=canary-url"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def numbers(self, server_id: str | None = None) -> list[int]:
        """Of the accepted events, in the order in which they came."""
        wanted = (e for e in self.accepted if server_id in (None, e["subject"]))
        return [e["data"]["number"] for e in wanted]

    async def until(self, count: int, within_s: float = 30) -> None:
        """Return when so many different events have been accepted."""
        async with asyncio.timeout(within_s):
            while len({e["id"] for e in self.accepted}) < count:  # noqa: ASYNC110  # another thread's
                await asyncio.sleep(0.02)


@pytest.fixture
def receiving() -> Iterator[Callable[[Answer], Receiver]]:
    """Makes receivers; they end with the test."""
    made: list[Receiver] = []

    def receiver(answer: Answer = lambda _: 200) -> Receiver:
        made.append(Receiver(answer))
        return made[-1]

    yield receiver
    for each in made:
        each.close()


Receiving = Callable[..., Receiver]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 0.05)


def hook(settings: Settings, **urls: str) -> Settings:
    """The settings with these webhooks."""
    given = [{"name": name, "url": url, "secret": SECRET} for name, url in urls.items()]
    return Settings(**(settings.model_dump() | {"webhooks": given}))


def tell(engine: Engine, *numbers: int, **given: Any) -> None:
    base = {"type": EventType.STEP, "operation_id": "o", "server_id": "s", "project_id": "p"}
    with transaction(engine) as session:
        for number in numbers:
            emit(session, Event(**(base | {"data": {"number": number}} | given)))


async def turn(engine: Engine, settings: Settings, name: str = "hook") -> Turn:
    """One turn that ends as soon as it has nothing more to send."""
    environment = ActivityEnvironment()
    work = asyncio.ensure_future(environment.run(Webhooks(engine, settings).deliver, name))
    for _ in range(200):
        await asyncio.sleep(0.02)
        with reading(engine) as session:
            mark = get_mark(session, webhook_mark(name))
            done = mark is not None and event_after(session, mark) is None
        if done or work.done():
            break
    environment.worker_shutdown()
    result: Turn = await work
    return result


async def test_a_webhook_that_is_new_gets_what_happens_from_now_on(
    engine: Engine, settings: Settings, receiving: Receiving
) -> None:
    tell(engine, 1)
    receiver = receiving()
    settings = hook(settings, hook=receiver.url)
    assert await turn(engine, settings) == Turn(configured=True, delivered=0)
    tell(engine, 2, 3)
    assert await turn(engine, settings) == Turn(configured=True, delivered=2)
    assert receiver.numbers() == [2, 3]


async def test_an_event_that_is_not_accepted_holds_back_those_behind_it(
    engine: Engine, settings: Settings, receiving: Receiving
) -> None:
    receiver = receiving(lambda n: 200 if n != 1 else 500)
    settings = hook(settings, hook=receiver.url)
    await turn(engine, settings)
    tell(engine, 1, 2, 3)
    assert await turn(engine, settings) == Turn(configured=True, delivered=1)
    assert receiver.numbers() == [1]
    assert await turn(engine, settings) == Turn(configured=True, delivered=2)
    assert receiver.numbers() == [1, 2, 3]


@pytest.mark.parametrize("status", [302, 400, 410, 503])
async def test_whatever_is_no_2xx_is_a_refusal_and_no_redirect_is_followed(
    engine: Engine, settings: Settings, receiving: Receiving, status: int
) -> None:
    receiver = receiving(lambda _: status)
    settings = hook(settings, hook=receiver.url)
    await turn(engine, settings)
    tell(engine, 1)
    with pytest.raises(Unavailable, match=f"did not accept event 1: status {status}"):
        await turn(engine, settings)
    assert receiver.requests == 1


async def test_a_receiver_that_is_not_there_is_no_secret_told(
    engine: Engine, settings: Settings, receiving: Receiving, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver = receiving()
    receiver.close()
    settings = hook(settings, hook=receiver.url)
    await turn(engine, settings)
    tell(engine, 1)
    with pytest.raises(Unavailable, match="Webhook hook did not accept event 1: Connect") as caught:
        await turn(engine, settings)
    assert caught.value.__cause__ is None
    said = "".join([str(caught.value), repr(settings), *capsys.readouterr()])
    assert "canary" not in said
    assert SECRET not in said


async def test_a_webhook_gets_only_the_types_it_wants_and_still_keeps_up(
    engine: Engine, settings: Settings, receiving: Receiving
) -> None:
    receiver = receiving()
    given = {"name": "hook", "url": receiver.url, "secret": SECRET, "types": [EventType.ENDED]}
    settings = Settings(**(settings.model_dump() | {"webhooks": [given]}))
    await turn(engine, settings)
    tell(engine, 1)
    tell(engine, 2, type=EventType.ENDED)
    tell(engine, 3)
    assert (await turn(engine, settings)).delivered == 1
    assert receiver.numbers() == [2]
    with reading(engine) as session:
        assert get_mark(session, webhook_mark("hook")) == 3


async def test_a_webhook_that_was_away_for_too_long_goes_on_with_the_oldest_that_is_kept(
    engine: Engine, settings: Settings, receiving: Receiving
) -> None:
    receiver = receiving()
    settings = hook(settings, hook=receiver.url)
    await turn(engine, settings)
    tell(engine, 1, 2, time=now() - timedelta(days=8))
    tell(engine, 3)
    with transaction(engine) as session:
        prune_events(session, now() - timedelta(days=7))
    assert (await turn(engine, settings)).delivered == 1
    assert receiver.numbers() == [3]


async def test_a_webhook_that_is_not_in_the_settings_is_let_go(
    engine: Engine, settings: Settings
) -> None:
    assert await Webhooks(engine, settings).deliver("hook") == Turn(configured=False)


async def test_a_tenants_events_are_sent_with_their_host(
    engine: Engine, settings: Settings, receiving: Receiving
) -> None:
    receiver = receiving()
    settings = hook(settings, hook=receiver.url)
    await turn(engine, settings)
    tell(engine, 1, host="host-1")
    await turn(engine, settings)
    assert receiver.accepted[0]["data"]["host"] == "host-1"


def test_events_are_kept_as_long_as_the_settings_say(engine: Engine, settings: Settings) -> None:
    tell(engine, 1, 2, time=now() - timedelta(days=8))
    tell(engine, 3, time=now() - timedelta(days=6))
    assert Webhooks(engine, settings).prune(10) == 2
    assert Webhooks(engine, settings).prune(10) == 0


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"secret": "canary"}, "whsec_"),
        ({"secret": "whsec_" + base64.b64encode(b"short").decode()}, "whsec_"),
        ({"url": "canary"}, "url"),
        ({"name": "Not A Name"}, "name"),
        ({"types": ["made.up"]}, "types"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], why: str
) -> None:
    good = {"name": "hook", "url": "http://x.example/canary", "secret": SECRET}
    monkeypatch.setenv("DURANOVA_WEBHOOKS", json.dumps([good]))
    assert Settings().webhooks[0].name == "hook"
    monkeypatch.setenv("DURANOVA_WEBHOOKS", json.dumps([good | given]))
    with pytest.raises(ValidationError, match=why) as caught:
        Settings()
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("DURANOVA_WEBHOOKS", json.dumps([good, good]))
    with pytest.raises(ValidationError, match="same name"):
        Settings()


# --- on a real Temporal server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with temporal_server() as address:
        yield address


@contextmanager
def worker(settings: Settings, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A control worker in a process of its own."""
    given = [
        {"name": w.name, "url": str(w.url.get_secret_value()), "secret": SECRET}
        for w in settings.webhooks
    ]
    reader, writer = os.pipe()
    environment = {
        **os.environ,
        "DURANOVA_DATABASE_URL": settings.database_url,
        "DURANOVA_TEMPORAL_ADDRESS": address,
        "DURANOVA_SECRET_KEY": settings.secret_key.get_secret_value(),
        "DURANOVA_WEBHOOKS": json.dumps(given),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "control", f"--ready-fd={writer}"],
        env=environment,
        pass_fds=[writer],
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    try:
        assert os.read(reader, 100), process.communicate()[1].decode()
        yield process
    finally:
        os.close(reader)
        process.terminate()
        said = process.communicate(timeout=30)[1].decode()
        assert "canary" not in said
        assert "Traceback" not in said, said


async def begun(engine: Engine, *names: str) -> None:
    """Return when each of these webhooks has begun."""
    async with asyncio.timeout(30):
        for name in names:
            while True:
                with reading(engine) as session:
                    if get_mark(session, webhook_mark(name)) is not None:
                        break
                await asyncio.sleep(0.02)


@pytest.mark.temporal
async def test_every_event_arrives_in_order_over_refusals_and_the_death_of_the_worker(
    address: str, engine: Engine, settings: Settings, receiving: Receiving
) -> None:
    receiver = receiving(lambda n: 503 if n in (2, 8) else 200)
    settings = hook(settings, killed=receiver.url)
    with worker(settings, address) as process:
        await begun(engine, "killed")
        for number in range(10):
            tell(engine, number, server_id=f"server-{number % 2}")
        await receiver.until(4)
        process.kill()
        process.wait()
    tell(engine, *range(10, 20), server_id="server-0")  # while no worker runs
    with worker(settings, address):
        await receiver.until(20)
    assert set(receiver.numbers()) == set(range(20))
    for server in ("server-0", "server-1"):
        first_seen = list(dict.fromkeys(receiver.numbers(server)))
        assert first_seen == sorted(first_seen)


@pytest.mark.temporal
async def test_a_webhook_that_is_down_delays_no_other_and_gets_all_when_it_is_back(
    address: str, engine: Engine, settings: Settings, receiving: Receiving
) -> None:
    up = False
    down, well = receiving(lambda _: 200 if up else 503), receiving()
    settings = hook(settings, down=down.url, well=well.url)
    with worker(settings, address):
        await begun(engine, "down", "well")
        tell(engine, *range(20))
        await well.until(20, within_s=10)
        assert down.accepted == []
        up = True
        await down.until(20)
    assert down.numbers() == well.numbers() == list(range(20))
    client = await connect(address, "default")
    for name in ("down", "well"):
        history = await client.get_workflow_handle(f"webhook:{name}").fetch_history()
        assert "canary" not in history.to_json()
        assert SECRET.removeprefix("whsec_") not in history.to_json()
