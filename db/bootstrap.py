"""The records a new cloud starts with."""

from __future__ import annotations

from collections.abc import Mapping

from sqlmodel import Session

from db import identity
from db.identity import DEFAULT_DOMAIN, SYSTEM, Domain, Project, Role, Target, User
from db.passwords import hash_password

ROLES = ("admin", "manager", "member", "reader")
PROJECTS = {
    "admin": "Runs the cloud",
    "demo": "A first project to try things in",
    "alt": "A second project, to see that it does not see the first",
}
USERS = {"admin": ("admin", "admin"), "demo": ("member", "demo"), "alt": ("member", "alt")}
"""User → (role, project)."""


def bootstrap(session: Session, passwords: Mapping[str, str]) -> None:
    """Make what is missing: the default domain, roles, projects, users and their grants.

    ``passwords`` are by user name; a user without one in it cannot log in by password until one is
    set. May run at every start: a password that exists is never replaced, and the rest that exists
    is left as it is.
    """
    if session.get(Domain, DEFAULT_DOMAIN) is None:
        domain = Domain(id=DEFAULT_DOMAIN, name="Default", description="The default domain")
        identity.store(session, domain)
    roles = {name: _role(session, name) for name in ROLES}
    projects = {name: _project(session, name, why) for name, why in PROJECTS.items()}
    for name, (role, project) in USERS.items():
        user = _user(session, name, passwords.get(name))
        target = Target("project", projects[project].id)
        identity.add_grant(session, user.id, target, roles[role].id)
        if name == "admin":
            identity.add_grant(session, user.id, Target("system", SYSTEM), roles["admin"].id)


def _role(session: Session, name: str) -> Role:
    return identity.find(session, Role, name) or identity.store(session, Role(name=name))


def _project(session: Session, name: str, description: str) -> Project:
    return identity.find(session, Project, name, DEFAULT_DOMAIN) or identity.store(
        session, Project(name=name, domain_id=DEFAULT_DOMAIN, description=description)
    )


def _user(session: Session, name: str, password: str | None) -> User:
    user = identity.find(session, User, name, DEFAULT_DOMAIN) or User(
        name=name, domain_id=DEFAULT_DOMAIN
    )
    if user.password_hash is None and password is not None:
        user.password_hash = hash_password(password)
    return identity.store(session, user)
