"""Queries on security groups and their rules. ``project_id=None``: asked by an admin."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Select, bindparam, or_, true
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from db.network.tables import Port, PortSecurityGroup, SecurityGroup, SecurityGroupRule
from db.quotas import lock_quota
from db.session import fetch, now
from domain.errors import Conflict, NotFound

DEFAULT = "default"
_SAME_RULE = (
    "direction",
    "ethertype",
    "protocol",
    "port_range_min",
    "port_range_max",
    "remote_ip_prefix",
    "remote_group_id",
)


def visible_groups(project_id: str | None) -> ColumnElement[bool]:
    """Own groups."""
    return true() if project_id is None else col(SecurityGroup.project_id) == project_id


def visible_rules(project_id: str | None) -> ColumnElement[bool]:
    """Rules of own groups."""
    return true() if project_id is None else col(SecurityGroupRule.project_id) == project_id


def group_not_found(group_id: str) -> NotFound:
    """Neutron's words."""
    return NotFound(f"Security group {group_id:.64} does not exist", "SecurityGroupNotFound")


def rule_not_found(rule_id: str) -> NotFound:
    """Neutron's words."""
    return NotFound(
        f"Security group rule {rule_id:.64} does not exist", "SecurityGroupRuleNotFound"
    )


def get_group(session: Session, group_id: str, project_id: str | None) -> SecurityGroup:
    """One visible group. NotFound."""
    statement = select(SecurityGroup).where(
        SecurityGroup.id == group_id, visible_groups(project_id)
    )
    found = session.exec(statement).first()
    if found is None:
        raise group_not_found(group_id)
    return found


def get_rule(session: Session, rule_id: str, project_id: str | None) -> SecurityGroupRule:
    """One visible rule. NotFound."""
    statement = select(SecurityGroupRule).where(
        SecurityGroupRule.id == rule_id, visible_rules(project_id)
    )
    found = session.exec(statement).first()
    if found is None:
        raise rule_not_found(rule_id)
    return found


_RULES = (
    select(SecurityGroupRule)
    .where(col(SecurityGroupRule.security_group_id).in_(bindparam("group_ids", expanding=True)))
    .order_by(col(SecurityGroupRule.created_at), SecurityGroupRule.id)
)


def rules_of(session: Session, group_ids: Sequence[str]) -> dict[str, list[SecurityGroupRule]]:
    """Group id → its rules, oldest first; every asked id is a key."""
    found: dict[str, list[SecurityGroupRule]] = {group_id: [] for group_id in group_ids}
    for rule in session.exec(_RULES, params={"group_ids": list(group_ids)}):
        found[rule.security_group_id].append(rule)
    return found


def default_group_ids(session: Session, group_ids: Collection[str]) -> set[str]:
    """Which of these groups are the default one of their project."""
    rows = session.exec(
        select(SecurityGroup.id).where(
            col(SecurityGroup.id).in_(group_ids), SecurityGroup.name == DEFAULT
        )
    )
    return set(rows)


_DEFAULT_GROUP = select(SecurityGroup).where(
    SecurityGroup.project_id == bindparam("project_id"), SecurityGroup.name == DEFAULT
)


def find_default_group(session: Session, project_id: str) -> SecurityGroup | None:
    """The project's default group, if it has been made."""
    return session.exec(_DEFAULT_GROUP, params={"project_id": project_id}).first()


def ensure_default_group(session: Session, project_id: str) -> SecurityGroup:
    """The project's ``default`` group; made on first use: anything out, in only from its members."""
    found = find_default_group(session, project_id)
    if found is None:
        lock_quota(session, project_id)  # two first uses at once must not make two groups
        found = find_default_group(session, project_id)
    if found is None:
        found = add_group(
            session,
            SecurityGroup(
                project_id=project_id, name=DEFAULT, description="Default security group"
            ),
        )
        for ethertype in ("IPv4", "IPv6"):
            _default_rule(session, found, "ingress", ethertype, found.id)
        session.flush()
    return found


def add_group(session: Session, group: SecurityGroup) -> SecurityGroup:
    """Insert a group with the rules every new group has: anything out."""
    session.add(group)
    session.flush()
    for ethertype in ("IPv4", "IPv6"):
        _default_rule(session, group, "egress", ethertype, None)
    session.flush()
    return group


def _default_rule(
    session: Session, group: SecurityGroup, direction: str, ethertype: str, remote: str | None
) -> None:
    session.add(
        SecurityGroupRule(
            security_group_id=group.id,
            project_id=group.project_id,
            direction=direction,
            ethertype=ethertype,
            remote_group_id=remote,
        )
    )


def touch_group(group: SecurityGroup) -> None:
    """Note a change of the group or its rules."""
    group.updated_at = now()
    group.revision += 1


def remove_group(session: Session, group: SecurityGroup) -> None:
    """Delete a group with its rules and the rules that refer to it. Conflict while a port uses it."""
    refusal = Conflict(f"Security Group {group.id} in use.", "SecurityGroupInUse")
    member = select(PortSecurityGroup.port_id).where(
        PortSecurityGroup.security_group_id == group.id
    )
    if session.exec(member.limit(1)).first():
        raise refusal
    try:
        with session.begin_nested():
            session.delete(group)
    except IntegrityError:  # a port joined between the look and the delete
        raise refusal from None


def add_rule(session: Session, rule: SecurityGroupRule) -> SecurityGroupRule:
    """Insert a rule. Conflict when the group has the same one."""
    conditions = [SecurityGroupRule.security_group_id == rule.security_group_id]
    for name in _SAME_RULE:
        column, value = getattr(SecurityGroupRule, name), getattr(rule, name)
        conditions.append(column.is_(None) if value is None else column == value)
    twin = session.exec(select(SecurityGroupRule.id).where(*conditions)).first()
    if twin is not None:
        raise Conflict(
            f"Security group rule already exists. Rule id is {twin}.", "SecurityGroupRuleExists"
        )
    session.add(rule)
    session.flush()
    return rule


def using_groups(group_ids: Any) -> Select[str]:
    """The query for the hosts whose filtering depends on these groups, given as a query or a parameter for
    their ids: as the group of a port there, or as the remote group of a rule of such a group."""
    referring = select(SecurityGroupRule.security_group_id).where(
        col(SecurityGroupRule.remote_group_id).in_(group_ids)
    )
    return (
        sqlalchemy.select(col(Port.host))
        .join(PortSecurityGroup, col(PortSecurityGroup.port_id) == col(Port.id))
        .where(
            col(Port.host) != "",
            or_(
                col(PortSecurityGroup.security_group_id).in_(group_ids),
                col(PortSecurityGroup.security_group_id).in_(referring),
            ),
        )
        .distinct()
    )


_USING_GROUPS = using_groups(bindparam("group_ids", expanding=True))


def hosts_using_group(session: Session, group_ids: Collection[str]) -> set[str]:
    """The hosts whose filtering depends on these groups."""
    found = fetch(session, _USING_GROUPS, group_ids=list(group_ids)) if group_ids else ()
    return {host for (host,) in found}
