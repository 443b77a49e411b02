"""Limits of the network resources; usage is counted from the rows in the same transaction."""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy
from sqlalchemy import Select, bindparam, func
from sqlmodel import Session, col, select

from db.network.tables import Network, Port, SecurityGroup, SecurityGroupRule, Subnet
from db.quotas import QuotaLimit, SetLimits, limits_of, locked_limits
from db.session import fetch
from domain.errors import Conflict
from domain.quota import overs

DEFAULTS: dict[str, int] = {
    "network": 100,
    "subnet": 100,
    "port": 500,
    "security_group": 10,
    "security_group_rule": 100,
}
_TABLES: dict[str, Any] = {
    "network": Network,
    "subnet": Subnet,
    "port": Port,
    "security_group": SecurityGroup,
    "security_group_rule": SecurityGroupRule,
}


def network_limits(session: Session, project_id: str) -> dict[str, int]:
    """Resource → limit of this project; -1 is unlimited."""
    return limits_of(session, project_id, DEFAULTS)


def network_usage(session: Session, project_id: str) -> dict[str, int]:
    """Resource → how many the project has."""
    return {name: _count(session, project_id, name) for name in _TABLES}


def _count(session: Session, project_id: str, resource: str) -> int:
    ((count,),) = fetch(session, _counting(resource), project_id=project_id)
    return int(count)


@cache
def _counting(resource: str) -> Select[Any]:
    table = _TABLES[resource]
    mine = table.project_id == bindparam("project_id")
    return sqlalchemy.select(func.count()).select_from(table).where(mine)


def check_network_quota(
    session: Session,
    project_id: str,
    resource: str,
    wanted: int,
    limits: SetLimits | None = None,
) -> None:
    """Conflict (Neutron's OverQuota) unless ``wanted`` more fit; other checks of the project wait
    until this transaction ends. ``limits`` are those that ``locked_limits`` has read already, if it has."""
    limits = limits or locked_limits(session, project_id, "")
    allowed = limits.in_project(DEFAULTS)
    if allowed[resource] < 0:
        return  # what has no limit is not counted, however many there are
    if overs(allowed, {resource: _count(session, project_id, resource)}, {resource: wanted}):
        raise Conflict(f"Quota exceeded for resources: ['{resource}'].", "OverQuota")


def projects_with_limits(session: Session) -> list[str]:
    """Ids of the projects that have a network limit of their own."""
    rows = session.exec(
        select(QuotaLimit.project_id)
        .where(
            col(QuotaLimit.resource).in_(DEFAULTS),
            QuotaLimit.user_id == "",
            ~col(QuotaLimit.project_id).startswith("class:"),
        )
        .distinct()
    )
    return sorted(rows)
