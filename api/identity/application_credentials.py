"""Application credentials: secrets that log in as their user, for one project and some roles."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, Field, StrictBool, model_validator
from sqlmodel import Session

from api.context import Db, allow
from api.fields import Text
from api.idempotency import KeyedRoute
from api.identity.links import Id, Links, Name255, TheLinks, absent, owner_or_reader
from api.identity.users import Password
from api.policy import Caller, implied, permits
from db import identity
from db.identity import ApplicationCredential, Role, Target, User
from db.passwords import hash_password
from db.session import now
from domain.errors import BadRequest, Conflict, Forbidden, NotFound

router = APIRouter(route_class=KeyedRoute)
_PATH = "/v3/users/{user_id}/application_credentials"


def _as_utc(when: datetime) -> datetime:
    try:
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except OverflowError:
        raise ValueError("It is out of range.") from None


class RoleRef(BaseModel):
    """A role by id or name."""

    id: Id | None = None
    name: Name255 | None = None

    @model_validator(mode="after")
    def _check(self) -> RoleRef:
        if not self.id and not self.name:
            raise ValueError("Expecting to find id or name in role.")
        return self

    def find(self, session: Session) -> Role:
        """The role; NotFound."""
        if self.id:
            return identity.get(session, Role, self.id)
        role = identity.find(session, Role, self.name or "")
        if role is None:
            raise NotFound(f"Could not find role: {self.name}.")
        return role


class CredentialAttributes(BaseModel):
    """What an application credential may be given."""

    name: Name255
    description: Text | None = None
    secret: Password | None = None
    expires_at: Annotated[datetime, AfterValidator(_as_utc)] | None = None
    roles: list[RoleRef] = Field(default_factory=list, max_length=100)
    unrestricted: StrictBool | None = None
    access_rules: list[dict[str, Any]] = Field(default_factory=list)


class CredentialBody(BaseModel):
    """A new application credential."""

    application_credential: CredentialAttributes


def _view(session: Session, row: ApplicationCredential, links: Links) -> dict[str, Any]:
    roles = [r for role_id in row.role_ids if (r := session.get(Role, role_id))]
    expires_at = row.expires_at and row.expires_at.strftime("%Y-%m-%dT%H:%M:%S.%f")
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description or None,
        "user_id": row.user_id,
        "project_id": row.project_id,
        "system": None,
        "expires_at": expires_at,
        "roles": [{"id": r.id, "name": r.name, "domain_id": None} for r in roles],
        "unrestricted": row.unrestricted,
        "links": links.of("users", row.user_id, "application_credentials", row.id),
    }


def _refuse_restricted(who: Caller) -> None:
    if who.restricted:
        raise Forbidden(
            "Using method 'application_credential' is not allowed for managing additional"
            " application credentials."
        )


@router.get(_PATH)
def list_application_credentials(
    user_id: str,
    who: Annotated[Caller, allow("identity:self")],
    db: Db,
    links: TheLinks,
    name: str | None = None,
) -> dict[str, Any]:
    """A user's application credentials."""
    owner_or_reader(who, user_id == who.user_id)
    identity.get(db, User, user_id)
    found = identity.list_application_credentials(db, user_id, name)
    return links.listing("application_credentials", [_view(db, c, links) for c in found])


@router.post(_PATH, status_code=201)
def create_application_credential(
    user_id: str,
    body: CredentialBody,
    who: Annotated[Caller, allow("identity:self")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """Make one for oneself and the token's project; the secret is shown this once."""
    given = body.application_credential
    _check_new(user_id, given, who)
    secret = given.secret or secrets.token_urlsafe(64)
    hashed = hash_password(secret)  # before the session's first statement: it takes long
    if identity.find_application_credential(db, user_id, given.name):
        raise Conflict(
            "Conflict occurred attempting to store application_credential -"
            f" it is not permitted to have two of one name: {given.name}."
        )
    row = ApplicationCredential(
        user_id=user_id,
        project_id=who.project_id,
        name=given.name,
        description=given.description or "",
        secret_hash=hashed,
        role_ids=_role_ids(db, given, who),
        unrestricted=bool(given.unrestricted),
        expires_at=given.expires_at,
    )
    view = _view(db, identity.store(db, row), links)
    return {"application_credential": view | {"secret": secret}}


def _check_new(user_id: str, given: CredentialAttributes, who: Caller) -> None:
    if user_id != who.user_id:
        raise Forbidden(
            "You are not authorized to perform the requested action:"
            " identity:create_application_credential."
        )
    _refuse_restricted(who)
    if not who.project_id:
        raise BadRequest("An application credential is for a project: ask with a token for one.")
    if given.expires_at is not None and given.expires_at <= now():
        raise BadRequest("Invalid input for field/attribute expires_at. It lies in the past.")
    if given.access_rules:
        # Accepting rules that nothing enforces would hand out more than was asked for.
        raise absent("access rules")


def _role_ids(session: Session, given: CredentialAttributes, who: Caller) -> list[str]:
    """The roles asked for, which the user must hold; without any, those of the token."""
    target = Target("project", who.project_id)
    granted = identity.granted_roles(session, who.user_id, target)
    # A token with fewer roles than its user must not beget one with more.
    held = implied(r.name for r in granted) & who.effective_roles
    if not given.roles:
        return [r.id for r in identity.roles_named(session, set(who.roles & held))]
    roles = [ref.find(session) for ref in given.roles]
    for role in roles:
        if role.name not in held:
            raise BadRequest(f"Invalid application credential: the user lacks the role {role.id}.")
    return [r.id for r in roles]


def _get(session: Session, user_id: str, credential_id: str) -> ApplicationCredential:
    row = session.get(ApplicationCredential, credential_id)
    if row is None or row.user_id != user_id:
        raise NotFound(f"Could not find Application Credential: {credential_id}.")
    return row


@router.get(_PATH + "/{credential_id}")
def show_application_credential(
    user_id: str,
    credential_id: str,
    who: Annotated[Caller, allow("identity:self")],
    db: Db,
    links: TheLinks,
) -> dict[str, Any]:
    """One application credential, without its secret."""
    owner_or_reader(who, user_id == who.user_id)
    return {"application_credential": _view(db, _get(db, user_id, credential_id), links)}


@router.delete(_PATH + "/{credential_id}", status_code=204)
def delete_application_credential(
    user_id: str, credential_id: str, who: Annotated[Caller, allow("identity:self")], db: Db
) -> None:
    """Delete one; the tokens got with it end."""
    if user_id != who.user_id and not permits(who, "identity:admin"):
        raise Forbidden(
            "You are not authorized to perform the requested action:"
            " identity:delete_application_credential."
        )
    _refuse_restricted(who)
    db.delete(_get(db, user_id, credential_id))


@router.get("/v3/users/{user_id}/access_rules")
def list_access_rules(
    user_id: str, who: Annotated[Caller, allow("identity:self")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """A user's access rules: none."""
    owner_or_reader(who, user_id == who.user_id)
    identity.get(db, User, user_id)
    return links.listing("access_rules", [])
