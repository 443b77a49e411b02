"""Limits that differ from the defaults; usage is always counted from the rows themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy
from sqlalchemy import Executable, UniqueConstraint, bindparam, delete, func, text
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import id_column
from db.groups import ServerGroup
from db.identity import Project
from db.keypairs import Keypair
from db.servers import Server
from db.session import fetch
from domain.errors import QuotaExceeded
from domain.quota import COUNTED_PER_USER, UNLIMITED, overs, refusal

_CLASS = "class:"
DEFAULT_CLASS = "default"
"""The one quota class that counts: its limits replace the settings' defaults."""
_DEFAULT_OWNER = _CLASS + DEFAULT_CLASS
_Owner = tuple[str, str]
"""A project's id or a class, and a user's id or nothing."""


class QuotaLimit(SQLModel, table=True):
    """One project's (or one user's in a project) limit for one resource; -1 is unlimited."""

    __tablename__ = "quota_limit"
    __table_args__ = (UniqueConstraint("project_id", "user_id", "resource"),)
    id: str = id_column()
    project_id: str = Field(max_length=270, index=True)
    """A project's id, or ``class:`` and the name of a quota class."""
    user_id: str = Field(default="", max_length=36)
    resource: str = Field(max_length=64)
    """Nova's names: instances, cores, ram, key_pairs, server_groups, server_group_members,
    metadata_items; Neutron's: network, subnet, port, security_group, security_group_rule."""
    limit: int


def project_exists(session: Session, project_id: str) -> bool:
    """Whether the identity service knows this project."""
    return session.get(Project, project_id) is not None


def set_limit(
    session: Session, project_id: str, resource: str, limit: int, user_id: str = ""
) -> None:
    """Give a project, or one user in it, a limit of its own."""
    row = session.exec(
        select(QuotaLimit).where(
            QuotaLimit.project_id == project_id,
            QuotaLimit.user_id == user_id,
            QuotaLimit.resource == resource,
        )
    ).first()
    if row is None:
        row = QuotaLimit(project_id=project_id, user_id=user_id, resource=resource, limit=limit)
    row.limit = limit
    session.add(row)
    session.flush()


def set_class_limit(session: Session, name: str, resource: str, limit: int) -> None:
    """Set one limit of a quota class."""
    set_limit(session, _CLASS + name, resource, limit)


def forget_limits(
    session: Session, project_id: str, resources: tuple[str, ...], user_id: str = ""
) -> None:
    """Back to the defaults: a project (with all its users), or one user in it."""
    statement = delete(QuotaLimit).where(
        col(QuotaLimit.project_id) == project_id, col(QuotaLimit.resource).in_(resources)
    )
    if user_id:
        statement = statement.where(col(QuotaLimit.user_id) == user_id)
    session.exec(statement)


_SET_LIMITS = sqlalchemy.select(
    *map(col, (QuotaLimit.project_id, QuotaLimit.user_id, QuotaLimit.resource, QuotaLimit.limit))
).where(
    col(QuotaLimit.project_id).in_(bindparam("owners", expanding=True)),
    col(QuotaLimit.user_id).in_(bindparam("users", expanding=True)),
)


def _set_limits(session: Session, owners: list[str], user_id: str) -> dict[_Owner, dict[str, int]]:
    """What was set for these projects or classes, and for the user in them: (owner, user) → limits."""
    found: dict[_Owner, dict[str, int]] = defaultdict(dict)
    for owner, user, resource, limit in fetch(
        session, _SET_LIMITS, owners=owners, users=["", user_id]
    ):
        found[owner, user][resource] = limit
    return found


@dataclass(frozen=True, slots=True)
class SetLimits:
    """Limits that were set, by resource, where others than the defaults hold."""

    project: Mapping[str, int]
    """For the project, or for the default class."""
    user: Mapping[str, int]
    """For one user in the project."""

    def in_project(self, defaults: Mapping[str, int]) -> dict[str, int]:
        """The project's limits for the resources that ``defaults`` names."""
        return {resource: self.project.get(resource, limit) for resource, limit in defaults.items()}

    def for_user(self, defaults: Mapping[str, int]) -> dict[str, int]:
        """The same for the user: the user's own, else the project's."""
        project = self.in_project(defaults)
        return {resource: self.user.get(resource, limit) for resource, limit in project.items()}


def _read_limits(session: Session, project_id: str, user_id: str) -> SetLimits:
    found = _set_limits(session, [_DEFAULT_OWNER, project_id], user_id)
    return SetLimits(
        project={**found[_DEFAULT_OWNER, ""], **found[project_id, ""]},
        user=found[project_id, user_id] if user_id else {},
    )


def locked_limits(session: Session, project_id: str, user_id: str) -> SetLimits:
    """What was set for the project and the user in it, for all checks in this transaction. From here on,
    until it ends, other checks of the project wait."""
    lock_quota(session, project_id)
    return _read_limits(session, project_id, user_id)


def class_limits(session: Session, name: str, defaults: Mapping[str, int]) -> dict[str, int]:
    """The limits of a quota class; what it does not set is as in ``defaults``
    (``settings.quota_defaults``)."""
    own = _set_limits(session, [_CLASS + name], "")[_CLASS + name, ""]
    return {resource: own.get(resource, limit) for resource, limit in defaults.items()}


def limits_of(
    session: Session, project_id: str, defaults: Mapping[str, int], user_id: str = ""
) -> dict[str, int]:
    """The limits that hold: a user's own, else the project's own, else the default class's."""
    return _read_limits(session, project_id, user_id).for_user(defaults)


def given_to_users(session: Session, project_id: str, but_not: str = "") -> dict[str, int]:
    """Resource → the sum of the limits given to single users of the project."""
    rows = session.exec(
        select(QuotaLimit.resource, func.sum(QuotaLimit.limit))
        .where(
            QuotaLimit.project_id == project_id,
            QuotaLimit.user_id != "",
            QuotaLimit.user_id != but_not,
            QuotaLimit.limit > 0,
        )
        .group_by(QuotaLimit.resource)
    )
    return {resource: int(total) for resource, total in rows}


def usage_of(
    session: Session,
    project_id: str,
    user_id: str = "",
    wanted: Collection[str] = ("server_groups",),
) -> dict[str, int]:
    """What a project, or one user in it, has: instances, cores, ram (MB), and server_groups if they are
    ``wanted``."""
    servers, groups = _usage(bool(user_id))
    ((instances, cores, ram),) = fetch(session, servers, project_id=project_id, user_id=user_id)
    used = {"instances": int(instances), "cores": int(cores), "ram": int(ram)}
    if "server_groups" in wanted:
        ((count,),) = fetch(session, groups, project_id=project_id, user_id=user_id)
        used["server_groups"] = int(count)
    return used


@cache
def _usage(of_user: bool) -> tuple[Executable, Executable]:
    """What sums up the servers of a project, and what counts its server groups."""
    servers: Any = sqlalchemy.select(
        func.count(col(Server.id)),
        func.coalesce(func.sum(Server.vcpus), 0),
        func.coalesce(func.sum(Server.ram_mb), 0),
    ).where(col(Server.project_id) == bindparam("project_id"), col(Server.deleted_at).is_(None))
    groups: Any = sqlalchemy.select(func.count(col(ServerGroup.id))).where(
        col(ServerGroup.project_id) == bindparam("project_id")
    )
    if of_user:
        servers = servers.where(col(Server.user_id) == bindparam("user_id"))
        groups = groups.where(col(ServerGroup.user_id) == bindparam("user_id"))
    return servers, groups


def count_keypairs(session: Session, user_id: str) -> int:
    """How many keypairs a user has."""
    return int(
        session.exec(select(func.count(col(Keypair.id))).where(Keypair.user_id == user_id)).one()
    )


def count_group_members(session: Session, group_id: str, user_id: str = "") -> int:
    """How many servers, not deleted, are in a group; with ``user_id`` only that user's."""
    statement = select(func.count(col(Server.id))).where(
        Server.group_id == group_id, col(Server.deleted_at).is_(None)
    )
    if user_id:
        statement = statement.where(Server.user_id == user_id)
    return int(session.exec(statement).one())


_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:owner, 0))")


def lock_quota(session: Session, owner_id: str) -> None:
    """Make concurrent checks of one project or user wait for each other until the transaction ends.

    SQLite needs nothing: a write transaction is alone there.
    """
    if session.get_bind().dialect.name == "postgresql":
        fetch(session, _LOCK, owner=f"quota:{owner_id}")


def check_quota(
    session: Session,
    project_id: str,
    user_id: str,
    wanted: Mapping[str, int],
    defaults: Mapping[str, int],
    limits: SetLimits | None = None,
) -> None:
    """Raise QuotaExceeded, in Nova's words, unless ``wanted`` more fits the project and the user.

    Call it in the write transaction that then adds the rows: until that one ends, other checks of the
    project wait. ``wanted`` may name instances, cores, ram (MB) and server_groups, which are counted,
    and metadata_items, key_pairs and server_group_members, which are compared as they are: for those
    add what is there already. ``defaults`` is ``settings.quota_defaults``. ``limits`` are those that
    ``locked_limits`` has read already, if it has.
    """
    limits = limits or locked_limits(session, project_id, user_id)
    _check(session, project_id, "", limits.in_project(defaults), wanted)
    own = limits.user
    if own.keys() & wanted.keys() & COUNTED_PER_USER:
        mine = {name: amount for name, amount in wanted.items() if name in own}
        _check(session, project_id, user_id, own, mine)


def _check(
    session: Session,
    project_id: str,
    user_id: str,
    limits: Mapping[str, int],
    wanted: Mapping[str, int],
) -> None:
    # What has no limit is not counted: a project without limits may have a hundred thousand servers.
    limited = {name for name in wanted if limits.get(name, UNLIMITED) >= 0}
    used = usage_of(session, project_id, user_id, limited) if limited & COUNTED_PER_USER else {}
    if names := overs(limits, used, wanted):
        raise QuotaExceeded(refusal(names, limits, used, wanted))
