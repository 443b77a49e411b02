"""The real `openstack` command against an API that says what a test tells it to: for what is the client's
alone, such as exit codes, what it sends, and how it bears a broken stream."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from tests.compat.conftest import Command

ID = "5aee1bd3-176b-48bb-a1e0-02853f730af9"
SERVER = "2955c702-5725-4918-9c97-67dc5d790c61"
MOMENT = "2026-01-02T03:04:05.600000Z"
HOLD = {
    "state": "waiting_operator",
    "step": "define",
    "error": "no space left",
    "verbs": ["retry", "resume", "skip", "abort", "replace"],
    "deadline_at": "2026-01-09T03:04:05.600000Z",
}


def view(**more: Any) -> dict[str, Any]:
    """An operation as the API shows it: a create that runs, unless told otherwise."""
    given = {
        "id": ID, "action": "create", "server_id": SERVER, "project_id": "p", "user_id": "u",
        "request_id": "req-1", "state": "running", "step": "claimed", "attempt": 1, "percent": None,
        "host": "node-1", "error": None, "created_at": MOMENT, "started_at": MOMENT,
        "updated_at": MOMENT, "finished_at": None, "steps": [], "verbs": ["cancel"],
        "retry_of": None, "deadline_at": None,
    }  # fmt: skip
    return given | more


def ended(state: str = "succeeded", **more: Any) -> dict[str, Any]:
    """The same once it has ended, two seconds later."""
    end = {"step": None, "finished_at": "2026-01-02T03:04:07.600000Z", "verbs": []}
    return view(state=state, **(end | more))


def step(result: str | None = None, **more: Any) -> dict[str, Any]:
    """A step that runs, or has this result after a second and a half."""
    end = "2026-01-02T03:04:07.100000Z" if result else None
    named = {"name": "build", "host": "node-1", "result": result, "details": None}
    return named | {"started_at": MOMENT, "finished_at": end} | more


@dataclass
class Told:
    """One event of a stream; the record says ``shown`` from just before it is sent."""

    id: int
    kind: str
    shown: dict[str, Any]

    def text(self) -> str:
        kind = f"duranova.operation.{self.kind}"
        names = ("action", "attempt", "error", "finished_at", "host", "server_id", "state")
        data = {name: self.shown[name] for name in names} | {"operation_id": self.shown["id"]}
        if self.shown["steps"]:
            data["step"] = self.shown["steps"][-1]
        content = {"id": str(self.id), "type": kind, "time": MOMENT, "data": data}
        return f"id: {self.id}\nevent: {kind}\ndata: {json.dumps(content)}\n\n"


@dataclass
class Api:
    """What the API says, and what it was asked."""

    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """By verb: status and body of its answer …"""
    then: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """… and how the operation stands in each later answer to ``wait``."""
    streams: list[list[Told] | int] | None = None
    """What each stream brings before it breaks off, or the status it is refused with; None: there is none.
    The last one does not break off."""
    streamed: list[str | None] = field(default_factory=list)
    """``Last-Event-ID`` of each request for a stream."""
    meanwhile: dict[str, Any] | None = None
    """How the operation stands once a stream has broken off."""
    sent: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    """(path, body, idempotency key) of each POST."""
    looks: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def shows(self, *operations: dict[str, Any]) -> None:
        """Have these on record."""
        self.operations.update({o["id"]: o for o in operations})


def refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": status, "kind": "error", "message": message}}, status)


class Routes:
    """The operations API as far as the command asks it."""

    def __init__(self, api: Api) -> None:
        self.api = api

    def find(self) -> Any:
        return {"operations": list(self.api.operations.values()), "next": None}

    def show(self, operation_id: str) -> Any:
        shown = self.api.operations.get(operation_id)
        self.api.looks += 1
        return shown or refusal(404, f"Operation {operation_id} could not be found.")

    def wait(self, operation_id: str) -> Any:
        if later := self.api.then.get(operation_id):
            self.api.shows(later.pop(0))
        return self.api.operations[operation_id]

    async def tell(self, operation_id: str, verb: str, request: Request) -> Any:
        key = request.headers.get("Idempotency-Key")
        self.api.sent.append((f"{operation_id}/{verb}", await request.json(), key))
        status, body = self.api.answers[verb]
        return JSONResponse(body, status)

    def events(self, request: Request) -> Any:
        if self.api.streams is None:
            return refusal(404, "The resource could not be found.")
        self.api.streamed.append(request.headers.get("Last-Event-ID"))
        script = self.api.streams.pop(0)
        if isinstance(script, int):
            return refusal(script, "gone")
        return StreamingResponse(self._told(script), media_type="text/event-stream")

    def _told(self, script: list[Told]) -> Iterator[str]:
        breaks_off = bool(self.api.streams)
        yield ": here\n\n"
        for event in script:
            self.api.shows(event.shown)
            before = self.api.looks
            yield event.text()
            while self.api.looks == before and not self.api.over.wait(0.02):
                yield ": wait\n\n"  # for the client's look; fails once it has gone
        while not breaks_off and not self.api.over.wait(0.1):
            yield ": still here\n\n"
        if self.api.meanwhile:
            self.api.shows(self.api.meanwhile)


def app_of(api: Api) -> FastAPI:
    app, routes = FastAPI(), Routes(api)
    app.get("/operations")(routes.find)
    app.get("/operations/{operation_id}")(routes.show)
    app.get("/operations/{operation_id}/wait")(routes.wait)
    app.post("/operations/{operation_id}/{verb}")(routes.tell)
    app.get("/events")(routes.events)
    return app


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[str, Api]]:
    """The address of an API, and what it says: one for all, since the command takes seconds to start."""
    api = Api()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app_of(api), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", api
        server.should_exit = True
        thread.join()


@pytest.fixture
def api(served: tuple[str, Api]) -> Iterator[Api]:
    """Knows nothing yet."""
    api = served[1]
    vars(api).update(vars(Api()))  # the same object: the server holds on to it
    yield api
    api.over.set()


@pytest.fixture(scope="session")
def variables(served: tuple[str, Api]) -> dict[str, str]:
    """With these every service is at that address, and nobody has to sign in."""
    return {"OS_AUTH_TYPE": "admin_token", "OS_TOKEN": "t", "OS_ENDPOINT": served[0]}


@pytest.fixture(scope="session")
def openstack(variables: dict[str, str]) -> Iterator[Command]:
    command = Command(variables)
    with command.process:
        yield command
