"""/operations/v1/servers/{id}/power-policy: what is done when a guest's power state changes by itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from api.answers import AnsweringRoute
from api.context import Db, TheCloud, allow
from api.drift import policy_of
from api.policy import Caller
from db.servers import Server, get_server
from domain.drift import PowerPolicy
from runtime.settings import Settings

router = APIRouter(route_class=AnsweringRoute)


class PolicyBody(BaseModel):
    """The wanted policy; null goes back to the cloud's."""

    model_config = ConfigDict(extra="forbid")
    power_policy: PowerPolicy | None


class PolicyView(BaseModel):
    """The policy that holds."""

    server_id: str
    power_policy: PowerPolicy
    is_default: bool
    """Whether it is the cloud's and not the server's own."""


@router.get("/v1/servers/{server_id}/power-policy")
def show_policy(
    server_id: str,
    who: Annotated[Caller, allow("servers:power_policy:read")],
    db: Db,
    cloud: TheCloud,
) -> PolicyView:
    """Which policy holds for the server."""
    return _view(_server(db, server_id, who), cloud.settings)


@router.put("/v1/servers/{server_id}/power-policy")
def set_policy(
    server_id: str,
    body: PolicyBody,
    who: Annotated[Caller, allow("servers:power_policy:write")],
    db: Db,
    cloud: TheCloud,
) -> PolicyView:
    """Give the server a policy of its own."""
    server = _server(db, server_id, who)
    server.power_policy = body.power_policy
    db.add(server)
    return _view(server, cloud.settings)


def _server(db: Db, server_id: str, who: Caller) -> Server:
    return get_server(db, server_id, None if who.is_admin else who.project_id)


def _view(server: Server, settings: Settings) -> PolicyView:
    return PolicyView(
        server_id=server.id,
        power_policy=policy_of(server, settings),
        is_default=server.power_policy is None,
    )
