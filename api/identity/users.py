"""Users, their passwords, and groups, of which there are none."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, StrictBool, StringConstraints
from sqlmodel import Session

from api.context import Db, TheCloud, allow
from api.fields import Text
from api.idempotency import KeyedRoute
from api.identity.links import (
    Attributes,
    Id,
    Links,
    Name255,
    TheLinks,
    absent,
    flag,
    owner_or_reader,
)
from api.identity.projects import project_view
from api.policy import Caller
from api.tokens import DENIED
from db import identity
from db.identity import DEFAULT_DOMAIN, Domain, User
from db.passwords import MAX_LENGTH, hash_password, verify_password
from db.session import reading
from domain.errors import BadRequest, Forbidden, NotFound, Unauthorized

router = APIRouter(route_class=KeyedRoute)


def _check_encodable(password: str) -> str:
    password.encode()
    return password


Password = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=MAX_LENGTH),
    AfterValidator(_check_encodable),
]


class UserAttributes(Attributes):
    """What a user may be given."""

    # Most only loosen rules this service does not have: kept for clients that read them back.
    known_options: ClassVar[dict[str, type]] = {
        "ignore_change_password_upon_first_use": bool,
        "ignore_lockout_failure_attempts": bool,
        "ignore_password_expiry": bool,
        "ignore_user_inactivity": bool,
        "lock_password": bool,
        "multi_factor_auth_enabled": bool,
        "multi_factor_auth_rules": list,
    }
    name: Name255
    domain_id: Id | None = None
    default_project_id: Id | None = None
    password: Password | None = None
    email: Text | None = None
    enabled: StrictBool = True

    def write_user(self, user: User, password_hash: str | None) -> None:
        """Copy what was sent to the row."""
        if self.options.get("multi_factor_auth_rules") or self.options.get(
            "multi_factor_auth_enabled"
        ):
            raise absent("multi-factor authentication")
        self.write(user, "default_project_id", "email", "enabled")
        if "password" in self.model_fields_set:
            user.password_hash = password_hash


class UserChanges(UserAttributes):
    """What of a user may change."""

    name: Name255 = ""


class UserBody(BaseModel):
    """A new user."""

    user: UserAttributes


class UserPatch(BaseModel):
    """Changes of a user."""

    user: UserChanges


class PasswordChange(BaseModel):
    """A new password, by whoever knows the old one."""

    password: Password
    original_password: Annotated[str, StringConstraints(strict=True, max_length=MAX_LENGTH)]


class PasswordBody(BaseModel):
    """The change of one's own password."""

    user: PasswordChange


def user_view(user: User, links: Links) -> dict[str, Any]:
    """A user as Keystone shows one; never the password."""
    view = user.extra | {
        "id": user.id,
        "name": user.name,
        "domain_id": user.domain_id,
        "enabled": user.enabled,
        "password_expires_at": None,
        "options": user.options,
        "links": links.of("users", user.id),
    }
    optional = {
        "default_project_id": user.default_project_id,
        "email": user.email,
        "description": user.description or None,
    }
    return view | {key: value for key, value in optional.items() if value is not None}


@router.get("/v3/users")
def list_users(
    _who: Annotated[Caller, allow("identity:read")],
    db: Db,
    links: TheLinks,
    name: str | None = None,
    domain_id: str | None = None,
    enabled: str | None = None,
) -> dict[str, Any]:
    """All users."""
    found = identity.search(db, User, name=name, domain_id=domain_id, enabled=flag(enabled))
    return links.listing("users", (user_view(u, links) for u in found))


@router.post("/v3/users", status_code=201)
def create_user(
    body: UserBody, who: Annotated[Caller, allow("identity:admin")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """Make a user, in the caller's domain unless another is named."""
    given = body.user
    # Before the session's first statement: hashing takes long for a transaction.
    hashed = hash_password(given.password) if given.password else None
    domain_id = given.domain_id or who.domain_id or DEFAULT_DOMAIN
    user = User(name=given.name, domain_id=identity.get(db, Domain, domain_id).id)
    given.write_user(user, hashed)
    _check_default_project(user)
    return {"user": user_view(identity.store(db, user), links)}


def _check_default_project(user: User) -> None:
    if user.default_project_id == user.domain_id:
        raise BadRequest("default_project_id must not be a domain.")


@router.get("/v3/users/{user_id}")
def show_user(
    user_id: str, who: Annotated[Caller, allow("identity:self")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """One user: oneself, or any for an administrator."""
    owner_or_reader(who, user_id == who.user_id)
    return {"user": user_view(identity.get(db, User, user_id), links)}


@router.patch("/v3/users/{user_id}")
def update_user(
    user_id: str,
    body: UserPatch,
    _who: Annotated[Caller, allow("identity:admin")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """Change a user; a new password or disabling ends the user's tokens."""
    given = body.user
    hashed = hash_password(given.password) if given.password else None
    user = identity.get(db, User, user_id)
    if given.domain_id not in (None, user.domain_id):
        raise BadRequest("Cannot change Domain ID")
    given.write_user(user, hashed)
    _check_default_project(user)
    if "password" in given.model_fields_set or not user.enabled:
        identity.revoke_user_tokens(user)
    return {"user": user_view(identity.store(db, user), links)}


@router.delete("/v3/users/{user_id}", status_code=204)
def delete_user(user_id: str, _who: Annotated[Caller, allow("identity:admin")], db: Db) -> None:
    """Delete a user with their grants and application credentials."""
    identity.delete_user(db, identity.get(db, User, user_id))


@router.post("/v3/users/{user_id}/password", status_code=204)
def change_password(
    user_id: str,
    body: PasswordBody,
    who: Annotated[Caller, allow("identity:self")],
    db: Db,
    cloud: TheCloud,
) -> None:
    """Change one's own password; ends all of one's tokens, this one included."""
    if user_id != who.user_id:
        raise Forbidden(
            "You are not authorized to perform the requested action: identity:change_password."
        )
    with reading(cloud.engine) as session:
        before = identity.get(session, User, user_id)
    if not verify_password(before.password_hash, body.user.original_password):
        raise Unauthorized(DENIED)
    if before.options.get("lock_password"):
        raise Forbidden("The password of this user is locked (option lock_password).")
    hashed = hash_password(body.user.password)
    _replace_password(db, before, hashed)


def _replace_password(session: Session, before: User, hashed: str) -> None:
    user = identity.get(session, User, before.id)
    if user.password_hash != before.password_hash:  # somebody changed it in between
        raise Unauthorized(DENIED)
    user.password_hash = hashed
    identity.revoke_user_tokens(user)


@router.get("/v3/users/{user_id}/projects")
def list_user_projects(
    user_id: str,
    who: Annotated[Caller, allow("identity:self")],
    db: Db,
    links: TheLinks,
    name: str | None = None,
    enabled: str | None = None,
) -> dict[str, Any]:
    """The projects on which a user has a role."""
    owner_or_reader(who, user_id == who.user_id)
    found = identity.projects_of(db, identity.get(db, User, user_id).id)
    wanted = (p for p in found if name in (None, p.name) and flag(enabled) in (None, p.enabled))
    return links.listing("projects", (project_view(p, links) for p in wanted))


# --- groups: none, but clients ask


@router.get("/v3/users/{user_id}/groups")
def list_user_groups(
    user_id: str, who: Annotated[Caller, allow("identity:self")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """The groups of a user: none."""
    owner_or_reader(who, user_id == who.user_id)
    identity.get(db, User, user_id)
    return links.listing("groups", [])


@router.get("/v3/groups")
def list_groups(_who: Annotated[Caller, allow("identity:read")], links: TheLinks) -> dict[str, Any]:
    """All groups: none."""
    return links.listing("groups", [])


@router.get("/v3/groups/{group_id}")
def show_group(group_id: str, _who: Annotated[Caller, allow("identity:read")]) -> None:
    """No group."""
    raise NotFound(f"Could not find group: {group_id}.")


@router.post("/v3/groups")
def create_group(_who: Annotated[Caller, allow("identity:admin")]) -> None:
    """Groups are not implemented."""
    raise absent("groups; grant roles to users")
