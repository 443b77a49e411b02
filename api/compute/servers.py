"""Servers: create, list, show, update, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, TypeAdapter, ValidationError

from api.answers import json_answer
from api.compute.create import Created, create_servers
from api.compute.server_bodies import (
    CreateServerRequest,
    DiskConfig,
    Hostname,
    IPv4,
    IPv6,
    ShortDescription,
)
from api.compute.server_query import ListServers, wanted_servers
from api.compute.server_views import (
    Named,
    ServerList,
    ServerNames,
    ServerReader,
    ShownServer,
)
from api.context import Db, TheCloud, allow
from api.fields import Boolean, Name
from api.idempotency import keep_early
from api.microversion import Body, Route, View, since
from api.paging import Link, TheLinks
from api.policy import Caller, permits
from db.server_list import list_names, list_servers, read_server
from db.servers import Server, get_server
from db.session import now
from domain.errors import BadRequest
from runtime.settings import Settings

router = APIRouter(route_class=Route)
HOLD_HEADER = "X-Duranova-Hold-On-Failure"
_BOOLEAN: TypeAdapter[bool] = TypeAdapter(Boolean)


class NewServer(View):
    """What the maker of a server is told: the only time its password is shown."""

    id: str
    links: list[Link]
    disk_config: Annotated[str, Field(alias="OS-DCF:diskConfig")]
    security_groups: list[Named]
    admin_pass: Annotated[str, Field(alias="adminPass")]


class Accepted(View):
    """``{"server": …}``, or ``{"reservation_id": …}`` where that was asked for."""

    server: NewServer | None = None
    reservation_id: str | None = None


class UpdateServer(Body):
    """What of a server can be changed in place."""

    name: Name | None = None
    disk_config: Annotated[DiskConfig | None, Field(alias="OS-DCF:diskConfig")] = None
    access_ip_v4: Annotated[IPv4 | None, Field(alias="accessIPv4")] = None
    access_ip_v6: Annotated[IPv6 | None, Field(alias="accessIPv6")] = None
    description: Annotated[ShortDescription | None, since("2.19")] = None
    hostname: Annotated[Hostname | None, since("2.90")] = None


class UpdateServerRequest(Body):
    """``{"server": …}``."""

    server: UpdateServer


def scope_of(who: Caller) -> str | None:
    """The project whose servers the caller may name by id; None for all."""
    return None if who.is_admin else who.project_id


@router.post("/v2.1/servers", status_code=202, response_model=Accepted)
def create_server(
    body: CreateServerRequest,
    request: Request,
    who: Annotated[Caller, allow("servers:create")],
    db: Db,
    cloud: TheCloud,
    links: TheLinks,
) -> Response:
    """Make servers."""
    made = create_servers(db, cloud, who, body)
    accepted = _answer(made, body, links)
    named = accepted.server
    answer = Response(
        accepted.model_dump_json(exclude_unset=True),
        202,
        {"Location": links.href("servers", named.id)} if named else None,
        media_type="application/json",
    )
    keep_early(db, answer)
    given = made.constraints | _hold(request, body, cloud.settings)
    cloud.launcher.create(db, who, made.servers, request.scope["request_id"], given)
    return answer


def _hold(request: Request, body: CreateServerRequest, settings: Settings) -> dict[str, float]:
    """Whether a failed build is to wait for an operator: the header says it, or the hint, or the cloud."""
    said = request.headers.get(HOLD_HEADER)
    hints = body.hints or body.old_hints
    try:
        wish = _BOOLEAN.validate_python(said) if said is not None else None
    except ValidationError:
        raise BadRequest(f"{HOLD_HEADER} must be true or false") from None
    if wish is None and hints is not None:
        wish = hints.hold_on_failure
    hold = settings.hold_on_failure if wish is None else wish
    return {"hold_s": settings.hold_deadline_s} if hold else {}


def _answer(made: Created, body: CreateServerRequest, links: TheLinks) -> Accepted:
    if body.server.return_reservation_id:
        return Accepted(reservation_id=made.reservation_id)
    first = made.servers[0]
    groups = [group.name for group in body.server.security_groups] or ["default"]
    return Accepted(
        server=NewServer(
            id=first.id,
            links=links.of("servers", first.id),
            disk_config=first.disk_config,
            security_groups=[Named(name=name) for name in groups],
            admin_pass=made.admin_pass,
        )
    )


@router.get("/v2.1/servers", response_model=ServerNames)
def index_servers(
    query: Annotated[ListServers, Query()],
    who: Annotated[Caller, allow("servers:index")],
    db: Db,
    cloud: TheCloud,
    links: TheLinks,
) -> Response:
    """A page of ids and names."""
    page, wanted = query.page(who), wanted_servers(db, cloud.settings, who, query)
    found = list_names(db, wanted, page) if wanted else []
    names = [{"id": r.id, "name": r.name, "links": links.of("servers", r.id)} for r in found]
    following = links.next("servers", query, [r.id for r in found])
    return json_answer({"servers": names} | ({"servers_links": following} if following else {}))


@router.get("/v2.1/servers/detail", response_model=ServerList)
def list_servers_in_detail(
    query: Annotated[ListServers, Query()],
    who: Annotated[Caller, allow("servers:index")],
    db: Db,
    cloud: TheCloud,
    links: TheLinks,
) -> Response:
    """A page of servers in full."""
    page, wanted = query.page(who), wanted_servers(db, cloud.settings, who, query)
    secrets = permits(who, "servers:extended_attributes")
    found = list_servers(db, wanted, page, user_data=secrets) if wanted else []
    servers = ServerReader(db, cloud, links, who).page(found)
    following = links.next("servers/detail", query, [s.id for s in found])
    return json_answer({"servers": servers} | ({"servers_links": following} if following else {}))


@router.get("/v2.1/servers/{server_id}", response_model=ShownServer)
def show_server(
    server_id: str,
    who: Annotated[Caller, allow("servers:show")],
    db: Db,
    cloud: TheCloud,
    links: TheLinks,
) -> Response:
    """One server."""
    server = read_server(db, server_id, scope_of(who))
    return json_answer(ServerReader(db, cloud, links, who).one(server))


@router.put("/v2.1/servers/{server_id}", response_model=ShownServer)
def update_server(
    server_id: str,
    body: UpdateServerRequest,
    who: Annotated[Caller, allow("servers:update")],
    db: Db,
    cloud: TheCloud,
    links: TheLinks,
) -> Response:
    """Change what can be changed in place."""
    server = get_server(db, server_id, scope_of(who))
    _apply(server, body.server)
    db.add(server)
    db.flush()
    return json_answer(ServerReader(db, cloud, links, who).updated(server))


def _apply(server: Server, body: UpdateServer) -> None:
    changes: dict[str, Any] = body.model_dump(exclude_unset=True, by_alias=False)
    may_be_none = {"description"}
    for name, value in changes.items():
        if value is not None or name in may_be_none:
            setattr(server, name, value)
    if changes:
        server.updated_at = now()


@router.delete("/v2.1/servers/{server_id}", status_code=204)
def delete_server(
    server_id: str,
    request: Request,
    who: Annotated[Caller, allow("servers:delete")],
    db: Db,
    cloud: TheCloud,
) -> None:
    """Delete, in whatever state the server is; it wins over what is going on."""
    server = get_server(db, server_id, scope_of(who))
    cloud.launcher.act(db, who, server, "delete", request.scope["request_id"])
