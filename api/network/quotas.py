"""Quotas of network resources."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from api.answers import AnsweringRoute
from api.context import Db
from api.network.wire import Admin, Entry, Json, Reader, not_allowed
from api.policy import Caller
from db.network.quotas import DEFAULTS, network_limits, network_usage, projects_with_limits
from db.quotas import DEFAULT_CLASS, class_limits, forget_limits, set_limit

router = APIRouter(prefix="/v2.0/quotas", tags=["quotas"], route_class=AnsweringRoute)
Limit = Annotated[int, Field(ge=-1, le=2**31 - 1)]


class Limits(Entry):
    """Those to change; -1 is unlimited."""

    network: Limit | None = None
    subnet: Limit | None = None
    port: Limit | None = None
    security_group: Limit | None = None
    security_group_rule: Limit | None = None


class ChangedQuota(Entry):
    """The body of an update."""

    quota: Limits


def _may_see(who: Caller, project_id: str) -> None:
    if not who.is_admin and who.project_id != project_id:
        raise not_allowed("get_quota")


@router.get("")
def list_quotas(who: Admin, db: Db) -> Json:
    """Every project that has limits of its own."""
    return {
        "quotas": [
            network_limits(db, project_id) | {"project_id": project_id, "tenant_id": project_id}
            for project_id in projects_with_limits(db)
        ]
    }


@router.get("/tenant")
@router.get("/project")
def show_own_project(who: Reader) -> Json:
    """Whose quotas the caller's are."""
    return {"tenant": {"tenant_id": who.project_id, "project_id": who.project_id}}


@router.get("/{project_id}")
def show_quota(project_id: str, who: Reader, db: Db) -> Json:
    """A project's limits."""
    _may_see(who, project_id)
    return {"quota": network_limits(db, project_id)}


@router.get("/{project_id}/default")
def show_default_quota(project_id: str, who: Reader, db: Db) -> Json:
    """The limits of a project that has none of its own."""
    _may_see(who, project_id)
    return {"quota": class_limits(db, DEFAULT_CLASS, DEFAULTS)}


@router.get("/{project_id}/details")
@router.get("/{project_id}/details.json")
def show_quota_details(project_id: str, who: Reader, db: Db) -> Json:
    """A project's limits and what it has."""
    _may_see(who, project_id)
    used = network_usage(db, project_id)
    limits = network_limits(db, project_id)
    return {
        "quota": {
            name: {"limit": limit, "used": used[name], "reserved": 0}
            for name, limit in limits.items()
        }
    }


@router.put("/{project_id}")
def update_quota(project_id: str, body: ChangedQuota, who: Admin, db: Db) -> Json:
    """Give a project limits of its own."""
    for name, limit in body.quota.model_dump(exclude_none=True).items():
        set_limit(db, project_id, name, limit)
    return {"quota": network_limits(db, project_id)}


@router.delete("/{project_id}", status_code=204)
def reset_quota(project_id: str, who: Admin, db: Db) -> Response:
    """Back to the defaults."""
    forget_limits(db, project_id, tuple(DEFAULTS))
    return Response(status_code=204)
