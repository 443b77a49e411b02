"""POST /servers/{id}/action: one table, one row per action."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi import Body as FromBody
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from sqlmodel import Session
from starlette.responses import JSONResponse, Response

from api.compute.server_bodies import NamedGroup
from api.compute.servers import scope_of
from api.context import Cloud, Db, TheCloud, after_commit, allow, release
from api.fields import Integer, Text
from api.idempotency import keep_early
from api.microversion import ALWAYS, Body, Route, Span, current, since, span
from api.policy import Caller, authorize, permits
from db.network import hosts_to_refresh, join_group, leave_group
from db.servers import Server, get_server
from db.session import now
from domain.errors import BadRequest, Conflict, NotFound, NotImplementedHere
from domain.lifecycle import LIFECYCLES

router = APIRouter(route_class=Route)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f]")


@dataclass(frozen=True, slots=True)
class Call:
    """One action on its way."""

    session: Session
    cloud: Cloud
    who: Caller
    server: Server
    request_id: str

    def act(self, lifecycle: str) -> Response:
        """Start this operation; 202."""
        answer = keep_early(self.session, Response(status_code=202))
        self.cloud.launcher.act(self.session, self.who, self.server, lifecycle, self.request_id)
        return answer

    def check_unlocked(self) -> None:
        """Conflict when the server is locked for this caller."""
        if self.server.locked and not permits(self.who, "servers:unlock:override"):
            raise Conflict(f"Instance {self.server.id} is locked")


Handler = Callable[[Call, Any], Response]


@dataclass(frozen=True, slots=True)
class Action:
    """What the body's one key means."""

    rule: str
    body: Any
    """The type of the key's value."""
    handler: Handler
    versions: Span = ALWAYS
    adapter: TypeAdapter[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", TypeAdapter(self.body))


class Reboot(Body):
    """Softly through the guest, or by the plug."""

    type: Literal["SOFT", "HARD", "soft", "hard", "Soft", "Hard"]


class Lock(Body):
    """Keep everybody but administrators from changing the server."""

    locked_reason: Annotated[Text | None, since("2.73")] = None


class ConsoleOutput(Body):
    """How many lines of the console's end; all when absent, null or -1."""

    length: Integer | None = None


def _power(lifecycle: str) -> Action:
    def start(call: Call, _given: Any) -> Response:
        return call.act(lifecycle)

    return Action(LIFECYCLES[lifecycle].rule, Any, start)


def _reboot(call: Call, given: Reboot) -> Response:
    return call.act(f"reboot_{given.type.lower()}")


def _lock(call: Call, given: Lock | None) -> Response:
    server, owner = call.server, call.who.project_id == call.server.project_id
    if server.locked and owner:  # an owner's lock never softens an administrator's
        return Response(status_code=202)
    server.locked = True
    server.locked_by = "owner" if owner else "admin"
    server.locked_reason = given.locked_reason if given else None
    return _changed(call)


def _unlock(call: Call, _given: Any) -> Response:
    if call.server.locked_by == "admin":
        authorize(call.who, "servers:unlock:override")
    call.server.locked = False
    call.server.locked_by = call.server.locked_reason = None
    return _changed(call)


def _changed(call: Call) -> Response:
    call.server.updated_at = now()
    call.session.add(call.server)
    return Response(status_code=202)


def _console_output(call: Call, given: ConsoleOutput | None) -> Response:
    server = call.server
    if not server.host:
        raise Conflict(f"Instance {server.id} is not ready")
    release(call.session)  # the host may take its time; nobody else is to wait for the database
    most = call.cloud.settings.console_log_max_bytes
    text = call.cloud.launcher.read_console(server.host, server.id, most).decode(errors="replace")
    length = given.length if given else None
    if length is not None and length >= 0:
        text = "".join(text.splitlines(keepends=True)[-length:] if length else [])
    return JSONResponse({"output": _UNPRINTABLE.sub("", text)})


def _change_groups(change: Callable[[Session, str, str, str], None]) -> Handler:
    def handle(call: Call, given: NamedGroup) -> Response:
        call.check_unlocked()
        server = call.server
        hosts = hosts_to_refresh(call.session, server.id)
        change(call.session, server.id, server.project_id, given.name)
        hosts |= hosts_to_refresh(call.session, server.id)
        after_commit(call.session, partial(call.cloud.launcher.refresh_hosts, hosts))
        return Response(status_code=202)

    return handle


def _unoffered(what: str) -> Action:
    def refuse(_call: Call, _given: Any) -> Response:
        raise NotImplementedHere(f"{what} is not offered by this cloud.")

    return Action("servers:action", Any, refuse)


def _unoffered_in(what: str, versions: Span) -> Action:
    return replace(_unoffered(what), versions=versions)


ACTIONS: dict[str, Action] = {
    "addFixedIp": _unoffered_in("Adding fixed addresses", span(until="2.43")),
    "addFloatingIp": _unoffered_in("Adding floating addresses here", span(until="2.43")),
    "addSecurityGroup": Action("servers:security_groups:write", NamedGroup, _change_groups(join_group)),
    "changePassword": _unoffered("Changing a password"),
    "confirmResize": _unoffered("Resize"),
    "createBackup": _unoffered("Backup"),
    "createImage": _unoffered("Making images of servers"),
    "evacuate": _unoffered("Evacuate"),
    "forceDelete": _power("delete"),
    "injectNetworkInfo": _unoffered("Injecting network data"),
    "lock": Action("servers:lock", Lock | None, _lock),
    "migrate": _unoffered("Migration"),
    "os-getConsoleOutput": Action("servers:console_output", ConsoleOutput | None, _console_output),
    "os-getRDPConsole": _unoffered_in("A remote console", span(until="2.5")),
    "os-getSPICEConsole": _unoffered_in("A remote console", span(until="2.5")),
    "os-getSerialConsole": _unoffered_in("A remote console", span(until="2.5")),
    "os-getVNCConsole": _unoffered_in("A remote console", span(until="2.5")),
    "os-migrateLive": _unoffered("Live migration"),
    "os-resetState": _unoffered("Resetting a state by hand"),
    "os-start": _power("start"),
    "os-stop": _power("stop"),
    "pause": _power("pause"),
    "reboot": Action("servers:reboot", Reboot, _reboot),
    "rebuild": _unoffered("Rebuild"),
    "removeFixedIp": _unoffered_in("Removing fixed addresses", span(until="2.43")),
    "removeFloatingIp": _unoffered_in("Removing floating addresses here", span(until="2.43")),
    "removeSecurityGroup": Action("servers:security_groups:write", NamedGroup, _change_groups(leave_group)),
    "rescue": _unoffered("Rescue"),
    "resetNetwork": _unoffered("Resetting the network"),
    "resize": _unoffered("Resize"),
    "restore": _unoffered("Restoring deleted servers"),
    "resume": _power("resume"),
    "revertResize": _unoffered("Resize"),
    "shelve": _unoffered("Shelve"),
    "shelveOffload": _unoffered("Shelve"),
    "suspend": _power("suspend"),
    "trigger_crash_dump": _unoffered_in("A crash dump", span("2.17")),
    "unlock": Action("servers:unlock", Any, _unlock),
    "unpause": _power("unpause"),
    "unrescue": _unoffered("Rescue"),
    "unshelve": _unoffered("Shelve"),
}  # fmt: skip
"""The body's one key → what it does."""


@router.post("/v2.1/servers/{server_id}/action", status_code=202)
def act_on_server(
    server_id: str,
    body: Annotated[dict[str, Any], FromBody()],
    request: Request,
    who: Annotated[Caller, allow("servers:action")],
    db: Db,
    cloud: TheCloud,
) -> Response:
    """Carry out the action that the body's one key names."""
    if len(body) != 1:
        raise BadRequest("Malformed request body")
    [(name, value)] = body.items()
    action = ACTIONS.get(name)
    if action is None:
        raise BadRequest(f"There is no such action: {name:.255}")
    if current() not in action.versions:
        raise NotFound(f"API version {current()} is not supported on this method.")
    authorize(who, action.rule)
    try:
        given = action.adapter.validate_python(value)
    except ValidationError as error:
        found = [{**e, "loc": (name, *e["loc"])} for e in error.errors()]
        raise RequestValidationError(found) from None
    server = get_server(db, server_id, scope_of(who))
    return action.handler(Call(db, cloud, who, server, request.scope["request_id"]), given)
