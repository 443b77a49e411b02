"""Roles, what they imply, who has them on what, and the list of all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel
from sqlmodel import Session

from api.context import Db, allow
from api.idempotency import KeyedRoute
from api.identity.links import (
    Attributes,
    Id,
    Links,
    Name255,
    TheLinks,
    absent,
    check_mutable,
    flag,
)
from api.policy import Caller, implied
from db import identity
from db.identity import SYSTEM, Domain, Grant, Project, Role, Target, User
from domain.errors import BadRequest, NotFound

router = APIRouter(route_class=KeyedRoute)


class RoleAttributes(Attributes):
    """What a role may be given."""

    name: Name255
    domain_id: Id | None = None


class RoleChanges(RoleAttributes):
    """What of a role may change."""

    name: Name255 = ""


class RoleBody(BaseModel):
    """A new role."""

    role: RoleAttributes


class RolePatch(BaseModel):
    """Changes of a role."""

    role: RoleChanges


def _role_view(role: Role, links: Links) -> dict[str, Any]:
    return role.extra | {
        "id": role.id,
        "name": role.name,
        "domain_id": None,
        "description": role.description or None,
        "options": role.options,
        "links": links.of("roles", role.id),
    }


@router.get("/v3/roles")
def list_roles(
    _who: Annotated[Caller, allow("identity:read")],
    db: Db,
    links: TheLinks,
    name: str | None = None,
    domain_id: str | None = None,
) -> dict[str, Any]:
    """All roles; none belongs to a domain."""
    found = [] if domain_id else identity.search(db, Role, name=name)
    return links.listing("roles", (_role_view(r, links) for r in found))


@router.post("/v3/roles", status_code=201)
def create_role(
    body: RoleBody, _who: Annotated[Caller, allow("identity:admin")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """Make a role."""
    if body.role.domain_id is not None:
        raise absent("roles of a domain")
    role = Role(name=body.role.name)
    body.role.write(role)
    return {"role": _role_view(identity.store(db, role), links)}


@router.get("/v3/roles/{role_id}")
def show_role(
    role_id: str, _who: Annotated[Caller, allow("identity:read")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """One role."""
    return {"role": _role_view(identity.get(db, Role, role_id), links)}


@router.patch("/v3/roles/{role_id}")
def update_role(
    role_id: str,
    body: RolePatch,
    _who: Annotated[Caller, allow("identity:admin")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """Change a role; who has it must log in again when it is renamed."""
    role = identity.get(db, Role, role_id)
    check_mutable(role, body.role)
    if body.role.domain_id is not None:
        raise BadRequest("Update of `domain_id` is not allowed.")
    if body.role.name not in ("", role.name):  # tokens carry names
        for grant in identity.search_grants(db, role_id=role_id):
            identity.revoke_user_tokens(identity.get(db, User, grant.user_id))
    body.role.write(role)
    return {"role": _role_view(identity.store(db, role), links)}


@router.delete("/v3/roles/{role_id}", status_code=204)
def delete_role(role_id: str, _who: Annotated[Caller, allow("identity:admin")], db: Db) -> None:
    """Delete a role; it is taken from everyone."""
    role = identity.get(db, Role, role_id)
    check_mutable(role)
    identity.delete_role(db, role)


# --- implied roles: fixed


def _implied_by(session: Session, role: Role) -> list[Role]:
    return identity.roles_named(session, set(implied([role.name])) - {role.name})


def _implied_directly(session: Session, role: Role) -> list[Role]:
    """Without what follows from another implied role: the rules as Keystone lists them."""
    found = _implied_by(session, role)
    further = {n for r in found for n in implied([r.name]) - {r.name}}
    return [r for r in found if r.name not in further]


def _short(role: Role, links: Links) -> dict[str, Any]:
    return {"id": role.id, "name": role.name, "links": links.of("roles", role.id)}


@router.get("/v3/role_inferences")
def list_role_inferences(
    _who: Annotated[Caller, allow("identity:read")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """Which role implies which."""
    rules = [
        {"prior_role": _short(r, links), "implies": [_short(i, links) for i in also]}
        for r in identity.search(db, Role)
        if (also := _implied_directly(db, r))
    ]
    return {"role_inferences": rules, "links": links.of("role_inferences")}


@router.get("/v3/roles/{role_id}/implies")
def list_implied_roles(
    role_id: str, _who: Annotated[Caller, allow("identity:read")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """What a role implies."""
    role = identity.get(db, Role, role_id)
    rule = {
        "prior_role": _short(role, links),
        "implies": [_short(i, links) for i in _implied_directly(db, role)],
    }
    return {"role_inference": rule, "links": links.of("roles", role_id, "implies")}


# --- grants: /v3/{projects,domains}/{id}/users/{id}/roles and /v3/system/users/{id}/roles

_ON = "/v3/{kind}/{target_id}/users/{user_id}/roles"
_ON_SYSTEM = "/v3/system/users/{user_id}/roles"
Kind = Annotated[str, Path(pattern="^(projects|domains)$")]


def _on(session: Session, kind: str, target_id: str) -> Target:
    """The project or domain of a path; NotFound."""
    if kind == "projects":
        identity.get(session, Project, target_id)
    else:
        identity.get(session, Domain, target_id)
    return Target(kind.removesuffix("s"), target_id)


_THE_SYSTEM = Target("system", SYSTEM)


def _list(session: Session, target: Target, user_id: str, links: Links) -> dict[str, Any]:
    identity.get(session, User, user_id)
    found = identity.granted_roles(session, user_id, target)
    return links.listing("roles", (_role_view(r, links) for r in found))


def _find(session: Session, target: Target, user_id: str, role_id: str) -> Grant:
    identity.get(session, User, user_id)
    identity.get(session, Role, role_id)
    grant = identity.find_grant(session, user_id, target, role_id)
    if grant is None:
        raise NotFound(
            f"Could not find role assignment with role: {role_id}, user or group: {user_id},"
            f" project, domain, or system: {target.id}."
        )
    return grant


def _add(session: Session, target: Target, user_id: str, role_id: str) -> None:
    identity.get(session, User, user_id)
    identity.get(session, Role, role_id)
    identity.add_grant(session, user_id, target, role_id)


@router.get(_ON_SYSTEM)
def list_system_grants(
    user_id: str, _who: Annotated[Caller, allow("identity:read")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """A user's roles on the system."""
    return _list(db, _THE_SYSTEM, user_id, links)


@router.get(_ON_SYSTEM + "/{role_id}", status_code=204)
@router.head(_ON_SYSTEM + "/{role_id}", status_code=204, include_in_schema=False)
def check_system_grant(
    user_id: str, role_id: str, _who: Annotated[Caller, allow("identity:read")], db: Db
) -> None:
    """204 if the user has this role on the system, 404 if not."""
    _find(db, _THE_SYSTEM, user_id, role_id)


@router.put(_ON_SYSTEM + "/{role_id}", status_code=204)
def add_system_grant(
    user_id: str, role_id: str, _who: Annotated[Caller, allow("identity:admin")], db: Db
) -> None:
    """Grant a role on the system."""
    _add(db, _THE_SYSTEM, user_id, role_id)


@router.delete(_ON_SYSTEM + "/{role_id}", status_code=204)
def remove_system_grant(
    user_id: str, role_id: str, _who: Annotated[Caller, allow("identity:admin")], db: Db
) -> None:
    """Take a role on the system away."""
    identity.remove_grant(db, _find(db, _THE_SYSTEM, user_id, role_id))


@router.get(_ON)
def list_grants(
    kind: Kind,
    target_id: str,
    user_id: str,
    _who: Annotated[Caller, allow("identity:read")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """A user's roles on a project or domain."""
    return _list(db, _on(db, kind, target_id), user_id, links)


@router.get(_ON + "/{role_id}", status_code=204)
@router.head(_ON + "/{role_id}", status_code=204, include_in_schema=False)
def check_grant(
    kind: Kind,
    target_id: str,
    user_id: str,
    role_id: str,
    _who: Annotated[Caller, allow("identity:read")],
    db: Db,
) -> None:
    """204 if the user has this role there, 404 if not."""
    _find(db, _on(db, kind, target_id), user_id, role_id)


@router.put(_ON + "/{role_id}", status_code=204)
def add_grant(
    kind: Kind,
    target_id: str,
    user_id: str,
    role_id: str,
    _who: Annotated[Caller, allow("identity:admin")],
    db: Db,
) -> None:
    """Grant a role on a project or domain."""
    _add(db, _on(db, kind, target_id), user_id, role_id)


@router.delete(_ON + "/{role_id}", status_code=204)
def remove_grant(
    kind: Kind,
    target_id: str,
    user_id: str,
    role_id: str,
    _who: Annotated[Caller, allow("identity:admin")],
    db: Db,
) -> None:
    """Take a role away; ends the user's tokens."""
    identity.remove_grant(db, _find(db, _on(db, kind, target_id), user_id, role_id))


# --- all assignments


class AssignmentQuery(BaseModel):
    """Filters of the list of assignments, in Keystone's spelling."""

    user_id: str | None = Query(default=None, alias="user.id")
    group_id: str | None = Query(default=None, alias="group.id")
    role_id: str | None = Query(default=None, alias="role.id")
    project_id: str | None = Query(default=None, alias="scope.project.id")
    domain_id: str | None = Query(default=None, alias="scope.domain.id")
    system: str | None = Query(default=None, alias="scope.system")
    inherited_to: str | None = Query(default=None, alias="scope.OS-INHERIT:inherited_to")
    effective: str | None = None
    include_names: str | None = None
    include_subtree: str | None = None

    def targets(self, session: Session) -> list[Target | None]:
        """What grants must be on; None is anything. BadRequest for contradictions."""
        if sum(v is not None for v in (self.project_id, self.domain_id, self.system)) > 1:
            raise BadRequest("Specify a domain, a project or the system, not several of them.")
        if flag(self.include_subtree) and not self.project_id:
            raise BadRequest("scope.project.id must be specified if include_subtree is.")
        if self.project_id:
            ids = [self.project_id]
            if flag(self.include_subtree):
                ids = _tree(session, self.project_id)
            return [Target("project", i) for i in ids]
        if self.domain_id:
            return [Target("domain", self.domain_id)]
        return [_THE_SYSTEM if self.system is not None else None]


def _tree(session: Session, project_id: str) -> list[str]:
    children = identity.search(session, Project, parent_id=project_id)
    return [project_id, *(i for c in children for i in _tree(session, c.id))]


@dataclass(frozen=True, slots=True)
class _Assignments:
    """Writes grants as assignments, looking every name up once (the session keeps its rows)."""

    session: Session
    links: Links
    names: bool

    def _ref(self, row: User | Project) -> dict[str, Any]:
        if not self.names:
            return {"id": row.id}
        home = identity.get(self.session, Domain, row.domain_id)
        return {"id": row.id, "name": row.name, "domain": {"id": home.id, "name": home.name}}

    def _role(self, role: Role) -> dict[str, Any]:
        return {"id": role.id, "name": role.name} if self.names else {"id": role.id}

    def _scope(self, grant: Grant) -> dict[str, Any]:
        if grant.target_kind == "system":
            return {"system": {"all": True}}
        if grant.target_kind == "project":
            return {"project": self._ref(identity.get(self.session, Project, grant.target_id))}
        domain = identity.get(self.session, Domain, grant.target_id)
        named = {"id": domain.id, "name": domain.name}
        return {"domain": named if self.names else {"id": domain.id}}

    def view(self, grant: Grant, prior: Role, role: Role) -> dict[str, Any]:
        """One assignment of ``role``, which follows from the grant of ``prior``."""
        where: tuple[str, ...] = ("system",)
        if grant.target_kind != "system":
            where = (f"{grant.target_kind}s", grant.target_id)
        path = (*where, "users", grant.user_id, "roles", prior.id)
        links = {"assignment": self.links.href(*path)}
        if role.id != prior.id:
            links["prior_role"] = self.links.href("prior_role", prior.id, "implies", role.id)
        return {
            "role": self._role(role),
            "user": self._ref(identity.get(self.session, User, grant.user_id)),
            "scope": self._scope(grant),
            "links": links,
        }

    def all(self, grants: list[Grant], query: AssignmentQuery) -> Iterator[dict[str, Any]]:
        """The grants as asked, or, if asked for what is in effect, with what they imply."""
        for grant in grants:
            prior = identity.get(self.session, Role, grant.role_id)
            roles = [prior]
            if flag(query.effective):
                roles += _implied_by(self.session, prior)
            for role in roles:
                if query.role_id in (None, role.id):
                    yield self.view(grant, prior, role)


@router.get("/v3/role_assignments")
def list_role_assignments(
    query: Annotated[AssignmentQuery, Query()],
    _who: Annotated[Caller, allow("identity:read")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """Who has which role on what."""
    grants: list[Grant] = []
    if query.group_id is None and query.inherited_to is None:  # there are neither
        for target in query.targets(db):
            grants += identity.search_grants(
                db,
                user_id=query.user_id,
                target_kind=target.kind if target else None,
                target_id=target.id if target else None,
            )
    views = _Assignments(db, links, bool(flag(query.include_names))).all(grants, query)
    return links.listing("role_assignments", views)
