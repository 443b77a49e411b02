"""Domains, projects, users, roles, grants, application credentials and revoked tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import UniqueConstraint
from sqlmodel import Field, SQLModel

from db.columns import id_column, instant, json_column, stamped

DEFAULT_DOMAIN = "default"


class Domain(SQLModel, table=True):
    """A name space of projects and users."""

    __tablename__ = "identity_domain"
    id: str = id_column()
    name: str = Field(max_length=64, unique=True)
    description: str = ""
    enabled: bool = True


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
    """Tokens issued before this are revoked (password change, disable)."""
    created_at: datetime = stamped()


class Role(SQLModel, table=True):
    """A named set of rights."""

    __tablename__ = "identity_role"
    id: str = id_column()
    name: str = Field(max_length=255, unique=True)
    description: str = ""


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
