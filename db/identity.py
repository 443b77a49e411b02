"""Domains, projects, users, roles, grants, application credentials and revoked tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

import sqlalchemy
from sqlalchemy import Select, UniqueConstraint, bindparam, delete, or_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import instant, json_column, stamped
from db.session import UtcDateTime, fetch, now
from domain.errors import Conflict, NotFound

DEFAULT_DOMAIN = "default"
SYSTEM = "all"
"""The ``target_id`` of grants on the system."""


def id_column() -> Any:
    """Primary key: a fresh UUID as 32 hexadecimal digits, Keystone's spelling."""
    return Field(default_factory=lambda: uuid4().hex, primary_key=True, max_length=36)


class Domain(SQLModel, table=True):
    """A name space of projects and users."""

    __tablename__ = "identity_domain"
    id: str = id_column()
    name: str = Field(max_length=64, unique=True)
    description: str = ""
    enabled: bool = True
    tags: list[str] = json_column(list)
    options: dict[str, Any] = json_column()
    """Keystone's resource options, such as ``immutable``."""
    extra: dict[str, Any] = json_column()
    """Attributes the API does not know; kept and shown as they came."""


class Project(SQLModel, table=True):
    """A tenant."""

    __tablename__ = "identity_project"
    __table_args__ = (UniqueConstraint("domain_id", "name"),)
    id: str = id_column()
    domain_id: str = Field(foreign_key="identity_domain.id", max_length=36)
    name: str = Field(max_length=64)
    description: str = ""
    enabled: bool = True
    parent_id: str | None = Field(default=None, max_length=36)
    tags: list[str] = json_column(list)
    options: dict[str, Any] = json_column()
    """Keystone's resource options, such as ``immutable``."""
    extra: dict[str, Any] = json_column()
    """Attributes the API does not know; kept and shown as they came."""
    created_at: datetime = stamped()


class User(SQLModel, table=True):
    """Somebody who can authenticate."""

    __tablename__ = "identity_user"
    __table_args__ = (UniqueConstraint("domain_id", "name"),)
    id: str = id_column()
    domain_id: str = Field(foreign_key="identity_domain.id", max_length=36)
    name: str = Field(max_length=255)
    password_hash: str | None = None
    """argon2id in its own text form; None cannot log in by password."""
    enabled: bool = True
    email: str | None = None
    description: str = ""
    default_project_id: str | None = Field(default=None, max_length=36)
    tokens_valid_after: datetime | None = instant()
    """Tokens issued before this are revoked (password change, disable, a role taken away)."""
    options: dict[str, Any] = json_column()
    """Keystone's resource options, such as ``immutable``."""
    extra: dict[str, Any] = json_column()
    """Attributes the API does not know; kept and shown as they came."""
    created_at: datetime = stamped()


class Role(SQLModel, table=True):
    """A named set of rights."""

    __tablename__ = "identity_role"
    id: str = id_column()
    name: str = Field(max_length=255, unique=True)
    description: str = ""
    options: dict[str, Any] = json_column()
    """Keystone's resource options, such as ``immutable``."""
    extra: dict[str, Any] = json_column()
    """Attributes the API does not know; kept and shown as they came."""


class Grant(SQLModel, table=True):
    """A user's role on a project, a domain, or the system (exactly one target)."""

    __tablename__ = "identity_grant"
    __table_args__ = (UniqueConstraint("user_id", "role_id", "target_kind", "target_id"),)
    id: str = id_column()
    user_id: str = Field(foreign_key="identity_user.id", max_length=36, index=True)
    role_id: str = Field(foreign_key="identity_role.id", max_length=36)
    target_kind: str = Field(max_length=8)
    """``project``, ``domain`` or ``system``."""
    target_id: str = Field(max_length=36)
    """``all`` for the system."""


class ApplicationCredential(SQLModel, table=True):
    """A secret that logs in as its user, restricted to one project and some roles."""

    __tablename__ = "identity_application_credential"
    __table_args__ = (UniqueConstraint("user_id", "name"),)
    id: str = id_column()
    user_id: str = Field(foreign_key="identity_user.id", max_length=36)
    project_id: str = Field(foreign_key="identity_project.id", max_length=36)
    name: str = Field(max_length=255)
    description: str = ""
    secret_hash: str
    role_ids: list[str] = json_column(list)
    unrestricted: bool = False
    expires_at: datetime | None = instant()
    access_rules: list[dict[str, Any]] = json_column(list)
    created_at: datetime = stamped()


class RevokedToken(SQLModel, table=True):
    """A token that was taken back before its end; rows older than the token's life may go."""

    __tablename__ = "identity_revoked_token"
    jti: str = Field(primary_key=True, max_length=36)
    expires_at: datetime = stamped()


Named = Domain | Project | User | Role
AnyNamed = TypeVar("AnyNamed", Domain, Project, User, Role)
AnyRow = TypeVar("AnyRow", Domain, Project, User, Role, Grant, ApplicationCredential)


def get(session: Session, kind: type[AnyNamed], id: str) -> AnyNamed:
    """The domain, project, user or role with this id; NotFound in Keystone's words."""
    row = session.get(kind, id)
    if row is None:
        raise NotFound(f"Could not find {kind.__name__.lower()}: {id}.")
    return row


def find(
    session: Session, kind: type[AnyNamed], name: str, domain_id: str | None = None
) -> AnyNamed | None:
    """The row of this name, or None; projects and users are looked up in ``domain_id``."""
    statement = select(kind).where(kind.name == name)
    if issubclass(kind, Project | User):
        statement = statement.where(kind.domain_id == domain_id)
    return session.exec(statement).first()


def search(session: Session, kind: type[AnyNamed], **equal: Any) -> list[AnyNamed]:
    """Rows by name whose columns equal the values given; None does not filter."""
    statement = select(kind).order_by(col(kind.name), col(kind.id))
    for column, value in equal.items():
        if value is not None:
            statement = statement.where(getattr(kind, column) == value)
    return list(session.exec(statement))


def store(session: Session, row: AnyRow) -> AnyRow:
    """Write a new or changed row now; Conflict in Keystone's words when its name is taken."""
    kind = type(row).__name__.lower()
    name = getattr(row, "name", "")
    session.add(row)
    try:
        session.flush()
    except IntegrityError:
        session.rollback()
        raise Conflict(
            f"Conflict occurred attempting to store {kind} - it is not permitted to have two of "
            f"that name in the same place: {name}."
        ) from None
    return row


def replace_hash(
    session: Session, row: User | ApplicationCredential, kept: str, fresh: str
) -> None:
    """Keep another hash of the same secret, unless the secret was changed since ``row`` was read. No
    token ends."""
    kind = type(row)
    column = "password_hash" if isinstance(row, User) else "secret_hash"
    unchanged = (col(kind.id) == row.id, getattr(kind, column) == kept)
    session.execute(update(kind).where(*unchanged).values({column: fresh}))


# --- deleting


def delete_user(session: Session, user: User) -> None:
    """A user with their grants and application credentials; their tokens end with the row."""
    session.execute(delete(Grant).where(col(Grant.user_id) == user.id))
    session.execute(
        delete(ApplicationCredential).where(col(ApplicationCredential.user_id) == user.id)
    )
    session.flush()
    session.delete(user)
    session.flush()


def delete_project(session: Session, project: Project) -> None:
    """A project with the grants on it and the application credentials for it."""
    _delete_grants_on(session, "project", project.id)
    session.execute(
        delete(ApplicationCredential).where(col(ApplicationCredential.project_id) == project.id)
    )
    for user in session.exec(select(User).where(User.default_project_id == project.id)):
        user.default_project_id = None
    session.flush()
    session.delete(project)
    session.flush()


def delete_domain(session: Session, domain: Domain) -> None:
    """A domain with its users and projects."""
    for user in session.exec(select(User).where(User.domain_id == domain.id)).all():
        delete_user(session, user)
    for project in session.exec(select(Project).where(Project.domain_id == domain.id)).all():
        delete_project(session, project)
    _delete_grants_on(session, "domain", domain.id)
    session.delete(domain)
    session.flush()


def delete_role(session: Session, role: Role) -> None:
    """A role and its grants; whoever held it must log in again."""
    for grant in session.exec(select(Grant).where(Grant.role_id == role.id)).all():
        remove_grant(session, grant)
    session.delete(role)
    session.flush()


def _delete_grants_on(session: Session, kind: str, target_id: str) -> None:
    session.execute(
        delete(Grant).where(col(Grant.target_kind) == kind, col(Grant.target_id) == target_id)
    )


# --- grants


@dataclass(frozen=True, slots=True)
class Target:
    """What a role is granted on."""

    kind: str
    """``project``, ``domain`` or ``system``."""
    id: str


def find_grant(session: Session, user_id: str, target: Target, role_id: str) -> Grant | None:
    """This very grant, or None."""
    return session.exec(
        select(Grant).where(
            Grant.user_id == user_id,
            Grant.role_id == role_id,
            Grant.target_kind == target.kind,
            Grant.target_id == target.id,
        )
    ).first()


def add_grant(session: Session, user_id: str, target: Target, role_id: str) -> None:
    """Grant the role; nothing happens when it is granted already."""
    if find_grant(session, user_id, target, role_id) is None:
        grant = Grant(
            user_id=user_id, role_id=role_id, target_kind=target.kind, target_id=target.id
        )
        store(session, grant)


def remove_grant(session: Session, grant: Grant) -> None:
    """Take a role away, and with it every token the user has: a token carries its roles."""
    revoke_user_tokens(get(session, User, grant.user_id))
    session.delete(grant)
    session.flush()


def search_grants(session: Session, **equal: str | None) -> list[Grant]:
    """Grants whose columns equal the values given; None does not filter."""
    statement = select(Grant).order_by(
        col(Grant.user_id), col(Grant.target_kind), col(Grant.target_id), col(Grant.role_id)
    )
    for column, value in equal.items():
        if value is not None:
            statement = statement.where(getattr(Grant, column) == value)
    return list(session.exec(statement))


def granted_roles(session: Session, user_id: str, target: Target) -> list[Role]:
    """The user's roles on this target, by name, without those they imply."""
    statement = (
        select(Role)
        .join(Grant, col(Grant.role_id) == col(Role.id))
        .where(
            Grant.user_id == user_id,
            Grant.target_kind == target.kind,
            Grant.target_id == target.id,
        )
        .order_by(col(Role.name))
    )
    return list(session.exec(statement))


def roles_named(session: Session, names: set[str]) -> list[Role]:
    """The roles of these names, by name."""
    return list(
        session.exec(select(Role).where(col(Role.name).in_(names)).order_by(col(Role.name)))
    )


def projects_of(session: Session, user_id: str) -> list[Project]:
    """The projects on which the user has any role, by name."""
    granted = select(Grant.target_id).where(
        Grant.user_id == user_id, Grant.target_kind == "project"
    )
    statement = select(Project).where(col(Project.id).in_(granted))
    return list(session.exec(statement.order_by(col(Project.name), col(Project.id))))


def domains_of(session: Session, user_id: str) -> list[Domain]:
    """The domains on which the user has any role, by name."""
    granted = select(Grant.target_id).where(Grant.user_id == user_id, Grant.target_kind == "domain")
    return list(
        session.exec(select(Domain).where(col(Domain.id).in_(granted)).order_by(col(Domain.name)))
    )


# --- application credentials


def find_application_credential(
    session: Session, user_id: str, name: str
) -> ApplicationCredential | None:
    """A user's application credential by name, or None."""
    return session.exec(
        select(ApplicationCredential).where(
            ApplicationCredential.user_id == user_id, ApplicationCredential.name == name
        )
    ).first()


def list_application_credentials(
    session: Session, user_id: str, name: str | None = None
) -> list[ApplicationCredential]:
    """A user's application credentials, by name."""
    statement = select(ApplicationCredential).where(ApplicationCredential.user_id == user_id)
    if name is not None:
        statement = statement.where(ApplicationCredential.name == name)
    return list(session.exec(statement.order_by(col(ApplicationCredential.name))))


# --- tokens


@dataclass(frozen=True, slots=True)
class Bearer:
    """What a signed token claims, as far as the record can contradict it."""

    token_id: str
    issued_at: datetime
    user_id: str
    project_id: str = ""
    domain_id: str = ""
    application_credential_id: str = ""


def still_stands(session: Session, bearer: Bearer) -> bool:
    """Whether nothing the token rests on was revoked, disabled or deleted since; one statement."""
    statement = _standing(
        bool(bearer.project_id), bool(bearer.domain_id), bool(bearer.application_credential_id)
    )
    return bool(fetch(session, statement, **asdict(bearer)))


@cache  # every request asks, and building the statement takes far longer than running it
def _standing(project: bool, domain: bool, credential: bool) -> Select[Any]:
    home, place = aliased(Domain), aliased(Domain)
    revoked = select(RevokedToken.jti).where(col(RevokedToken.jti) == bindparam("token_id"))
    valid_after = col(User.tokens_valid_after)
    issued_at = bindparam("issued_at", type_=UtcDateTime())
    statement: Select[Any] = (
        sqlalchemy.select(col(User.id))
        .join(home, col(home.id) == col(User.domain_id))
        .where(col(User.id) == bindparam("user_id"), col(User.enabled), col(home.enabled))
        .where(or_(valid_after.is_(None), valid_after < issued_at), ~revoked.exists())
    )
    if project:
        statement = (
            statement.join(Project, col(Project.id) == bindparam("project_id"))
            .join(place, col(place.id) == col(Project.domain_id))
            .where(col(Project.enabled), col(place.enabled))
        )
    if domain:
        scope = aliased(Domain)
        statement = statement.join(scope, col(scope.id) == bindparam("domain_id"))
        statement = statement.where(col(scope.enabled))
    if credential:
        wanted = col(ApplicationCredential.id) == bindparam("application_credential_id")
        statement = statement.join(ApplicationCredential, wanted)
    return statement


def revoke_token(session: Session, token_id: str, expires_at: datetime) -> None:
    """Take one token back; forgets those that have expired anyway."""
    session.execute(delete(RevokedToken).where(col(RevokedToken.expires_at) < now()))
    if session.get(RevokedToken, token_id) is None:
        session.add(RevokedToken(jti=token_id, expires_at=expires_at))
        session.flush()


def revoke_user_tokens(user: User) -> None:
    """Take back every token the user has now."""
    user.tokens_valid_after = now()
