"""Server groups: servers that belong together, or apart."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field
from sqlmodel import Session

from api.context import Db, TheCloud, allow
from api.fields import Name, Positive
from api.history import has_soft_group_policies
from api.microversion import Body, Route, View, since, until
from api.paging import MAX_LIMIT, Params
from api.policy import Caller
from db.groups import (
    ServerGroup,
    delete_server_group,
    get_server_group,
    list_server_groups,
    members_of,
)
from db.quotas import check_quota
from domain.errors import BadRequest, QuotaExceeded

router = APIRouter(prefix="/v2.1/os-server-groups", route_class=Route)
Reader = Annotated[Caller, allow("server_groups:read")]
Writer = Annotated[Caller, allow("server_groups:write")]
Policy = Literal["affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity"]
_HARD = ("affinity", "anti-affinity")


# --- bodies


class Rules(Body):
    max_server_per_host: Positive = 1


class NewGroup(Body):
    name: Name
    policies: Annotated[list[Policy], since("2.1", until="2.63", required=True)] = Field(
        default_factory=list, min_length=1, max_length=1
    )
    policy: Annotated[Policy, since("2.64", required=True)] = "affinity"
    rules: Annotated[Rules, since("2.64")] = Field(default_factory=Rules)


class CreateGroup(Body):
    server_group: NewGroup


class ListGroups(Params):
    all_projects: str | None = None
    limit: int = Field(default=MAX_LIMIT, ge=0)
    offset: int = Field(default=0, ge=0, le=2**31)


# --- views


class GroupView(View):
    id: str
    name: str
    policies: Annotated[list[str], until("2.63")]
    metadata: Annotated[dict[str, str], until("2.63")] = Field(default_factory=dict)
    """Never held anything."""
    policy: Annotated[str, since("2.64")]
    rules: Annotated[dict[str, int], since("2.64")]
    members: list[str]
    project_id: Annotated[str, since("2.13")]
    user_id: Annotated[str, since("2.13")]


class GroupEnvelope(View):
    server_group: GroupView


class GroupList(View):
    server_groups: list[GroupView]


def _show(group: ServerGroup, members: list[str]) -> GroupView:
    return GroupView(
        id=group.id,
        name=group.name,
        policies=[group.policy],
        policy=group.policy,
        rules=group.rules,
        members=members,
        project_id=group.project_id,
        user_id=group.user_id,
    )


# --- handlers


def _find(db: Session, who: Caller, group_id: str) -> ServerGroup:
    return get_server_group(db, group_id, None if who.is_admin else who.project_id)


@router.get("")
def index(query: Annotated[ListGroups, Query()], who: Reader, db: Db) -> GroupList:
    everything = query.all_projects is not None and who.is_admin
    limit = min(query.limit or MAX_LIMIT, MAX_LIMIT)
    project_id = None if everything else who.project_id
    groups = list_server_groups(db, project_id, query.offset, limit)
    members = members_of(db, [g.id for g in groups])
    return GroupList(server_groups=[_show(g, members[g.id]) for g in groups])


@router.post("")
def create(body: CreateGroup, who: Writer, db: Db, cloud: TheCloud) -> GroupEnvelope:
    asked = body.server_group
    policy = asked.policies[0] if asked.policies else asked.policy
    if policy not in _HARD and not has_soft_group_policies():
        raise BadRequest(
            f"Invalid input for field/attribute 0. Value: {policy}. "
            f"'{policy}' is not one of ['anti-affinity', 'affinity']"
        )
    rules = asked.rules.model_dump(exclude_unset=True)
    if rules and policy != "anti-affinity":
        raise BadRequest("Only anti-affinity policy supports rules.")
    try:
        wanted, defaults = {"server_groups": 1}, cloud.settings.quota_defaults
        check_quota(db, who.project_id, who.user_id, wanted, defaults)
    except QuotaExceeded as error:
        raise QuotaExceeded("Quota exceeded, too many server groups.") from error
    group = ServerGroup(
        project_id=who.project_id,
        user_id=who.user_id,
        name=asked.name,
        policy=policy,
        max_server_per_host=asked.rules.max_server_per_host,
        rules=rules,
    )
    db.add(group)
    db.flush()
    return GroupEnvelope(server_group=_show(group, []))


@router.get("/{group_id}")
def show(group_id: str, who: Reader, db: Db) -> GroupEnvelope:
    group = _find(db, who, group_id)
    return GroupEnvelope(server_group=_show(group, members_of(db, [group.id])[group.id]))


@router.delete("/{group_id}", status_code=204, response_class=Response)
def delete(group_id: str, who: Writer, db: Db) -> None:
    delete_server_group(db, _find(db, who, group_id))
