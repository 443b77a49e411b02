"""From proof to token: who somebody is, what they asked to act on, and which roles they have there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator
from sqlmodel import Session

from api.context import Cloud
from api.fields import Text
from api.policy import implied
from api.tokens import DENIED, CredentialClaim, Housed, Named, Token, new_token_id
from db import identity
from db.identity import SYSTEM, ApplicationCredential, Domain, Project, Role, Target, User
from db.passwords import hash_anew, verify_password
from db.session import now, reading, transaction
from domain.errors import BadRequest, Forbidden, Unauthorized

Word = Annotated[Text, StringConstraints(strict=True, min_length=1, max_length=4096)]


class DomainRef(BaseModel):
    """A domain by id or name."""

    id: Word | None = None
    name: Word | None = None

    @model_validator(mode="after")
    def _check(self) -> DomainRef:
        if not self.id and not self.name:
            raise ValueError("Expecting to find id or name in domain.")
        return self

    def find(self, session: Session) -> Domain | None:
        """The enabled domain meant, or None."""
        found = (
            session.get(Domain, self.id)
            if self.id
            else identity.find(session, Domain, self.name or "")
        )
        return found if found and found.enabled else None


class HousedRef(BaseModel):
    """A user or project by id, or by name and domain."""

    id: Word | None = None
    name: Word | None = None
    domain: DomainRef | None = None

    @model_validator(mode="after")
    def _check(self) -> HousedRef:
        if not self.id and not (self.name and self.domain):
            raise ValueError("Expecting to find id, or name and domain.")
        return self

    def find(
        self, session: Session, kind: type[identity.AnyNamed]
    ) -> tuple[identity.AnyNamed, Domain] | None:
        """The enabled row meant with its enabled domain, or None."""
        if self.id:
            row = session.get(kind, self.id)
        else:
            home = self.domain.find(session) if self.domain else None
            row = identity.find(session, kind, self.name or "", home.id) if home else None
        if not isinstance(row, User | Project) or not row.enabled:
            return None
        home = session.get(Domain, row.domain_id)
        return (row, home) if home and home.enabled else None


class UserWithPassword(HousedRef):
    """The user of the method ``password``."""

    password: Annotated[str, StringConstraints(strict=True)]


class PasswordMethod(BaseModel):
    """``password``."""

    user: UserWithPassword


class TokenMethod(BaseModel):
    """``token``."""

    id: Word


class CredentialMethod(BaseModel):
    """``application_credential``, by id, or by name and user."""

    id: Word | None = None
    name: Word | None = None
    user: HousedRef | None = None
    secret: Annotated[str, StringConstraints(strict=True)]

    @model_validator(mode="after")
    def _check(self) -> CredentialMethod:
        if not self.id and not (self.name and self.user):
            raise ValueError("Expecting to find id, or name and user.")
        return self


class Methods(BaseModel):
    """How somebody proves who they are."""

    methods: list[Word] = Field(min_length=1, max_length=8)
    password: PasswordMethod | None = None
    token: TokenMethod | None = None
    application_credential: CredentialMethod | None = None


class SystemScope(BaseModel):
    """The whole system."""

    all: Literal[True]


class Scope(BaseModel):
    """What the token shall be good for."""

    project: HousedRef | None = None
    domain: DomainRef | None = None
    system: SystemScope | None = None
    unscoped: dict[str, Any] | None = None
    trust: dict[str, Any] | None = Field(default=None, alias="OS-TRUST:trust")

    @model_validator(mode="after")
    def _check(self) -> Scope:
        if len(self.model_fields_set) != 1:
            raise ValueError(
                "Expecting to find exactly one of project, domain, system or unscoped."
            )
        return self


class Auth(BaseModel):
    """The body of a login."""

    identity: Methods
    scope: Scope | Literal["unscoped"] | None = None

    @property
    def wants_unscoped(self) -> bool:
        """Whether not even the default project is wanted."""
        return self.scope == "unscoped" or (
            isinstance(self.scope, Scope) and self.scope.unscoped is not None
        )

    @property
    def asked(self) -> Scope | None:
        """The project, domain or system asked for."""
        return None if isinstance(self.scope, str) or self.wants_unscoped else self.scope


@dataclass(frozen=True, slots=True)
class Proof:
    """What one method showed."""

    user_id: str
    methods: tuple[str, ...]
    parent: Token | None = None
    credential_id: str = ""


def login(cloud: Cloud, auth: Auth) -> Token:
    """The token for a login. Unauthorized in Keystone's words whenever it is refused; BadRequest when
    the body lacks what it names.

    Passwords are checked outside of transactions.
    """
    # Taken before anything is read: a password changed meanwhile ends this token at birth.
    started = now()
    proofs = [
        _prove(cloud, method, auth.identity) for method in dict.fromkeys(auth.identity.methods)
    ]
    if len({p.user_id for p in proofs}) != 1:
        raise Unauthorized(DENIED)
    parent = next((p.parent for p in proofs if p.parent), None)
    credential_id = next((p.credential_id for p in proofs if p.credential_id), "")
    with reading(cloud.engine) as session:
        token = _begin(session, cloud, proofs, started)
        if credential_id:
            return _scope_to_credential(session, token, credential_id, auth, parent is not None)
        if parent and parent.system and auth.asked and not auth.asked.system:
            raise Forbidden(
                "You are not authorized to perform the requested action: Using a system-scoped token"
                " to create a project-scoped or domain-scoped token is not allowed."
            )
        return _scope(session, token, auth)


# --- methods


def _prove(cloud: Cloud, method: str, given: Methods) -> Proof:
    prove = _METHODS.get(method)
    if prove is None:
        raise Unauthorized("Attempted to authenticate with an unsupported method.")
    if getattr(given, method) is None:
        raise BadRequest(f"Expecting to find {method} in identity.")
    return prove(cloud, getattr(given, method))


def _prove_password(cloud: Cloud, given: PasswordMethod) -> Proof:
    with reading(cloud.engine) as session:
        found = given.user.find(session, User)
    user = found[0] if found else None
    kept = user.password_hash if user else None
    if not verify_password(kept, given.user.password) or not user:
        raise Unauthorized(DENIED)
    _keep_by_todays_rules(cloud, user, kept, given.user.password)
    return Proof(user.id, ("password",))


def _prove_token(cloud: Cloud, given: TokenMethod) -> Proof:
    with reading(cloud.engine) as session:
        parent = cloud.tokens.read(session, given.id)
    credential_id = parent.credential.id if parent.credential else ""
    return Proof(parent.user_id, (*parent.methods, "token"), parent, credential_id)


def _prove_credential(cloud: Cloud, given: CredentialMethod) -> Proof:
    with reading(cloud.engine) as session:
        row = _find_credential(session, given)
    kept = row.secret_hash if row else None
    if not verify_password(kept, given.secret) or not row:
        raise Unauthorized(DENIED)
    _keep_by_todays_rules(cloud, row, kept, given.secret)
    return Proof(row.user_id, ("application_credential",), None, row.id)


def _keep_by_todays_rules(
    cloud: Cloud, row: User | ApplicationCredential, kept: str | None, secret: str
) -> None:
    fresh = hash_anew(kept, secret)
    if kept is not None and fresh is not None:
        with transaction(cloud.engine) as session:
            identity.replace_hash(session, row, kept, fresh)


def _find_credential(session: Session, given: CredentialMethod) -> ApplicationCredential | None:
    if given.id:
        return session.get(ApplicationCredential, given.id)
    found = given.user.find(session, User) if given.user else None
    if found is None:
        return None
    return identity.find_application_credential(session, found[0].id, given.name or "")


_METHODS: dict[str, Callable[[Cloud, Any], Proof]] = {
    "application_credential": _prove_credential,
    "password": _prove_password,
    "token": _prove_token,
}


# --- scopes


def _begin(session: Session, cloud: Cloud, proofs: list[Proof], started: datetime) -> Token:
    """The unscoped token of an enabled user."""
    found = HousedRef(id=proofs[0].user_id).find(session, User)
    if found is None:
        raise Unauthorized(DENIED)
    user, home = found
    parents = [p.parent for p in proofs if p.parent]
    first = parents[0] if parents else None
    return Token(
        id=new_token_id(),
        user_id=user.id,
        user_name=user.name,
        user_domain=_named(home),
        methods=tuple(dict.fromkeys(m for p in proofs for m in p.methods)),
        issued_at=started,
        expires_at=min([cloud.tokens.expiry(started), *(p.expires_at for p in parents)]),
        parent_id=(first.parent_id or first.id) if first else None,
    )


def _scope(session: Session, token: Token, auth: Auth) -> Token:
    asked = auth.asked
    if asked is None:
        return token if auth.wants_unscoped else _scope_to_default(session, token)
    if asked.project:
        return _scope_to_project(session, token, asked.project)
    if asked.domain:
        domain = asked.domain.find(session)
        if domain is None:
            raise Unauthorized(DENIED)
        roles = _roles(session, token, Target("domain", domain.id))
        return token.model_copy(update={"domain": _named(domain), "roles": roles})
    if asked.system:
        roles = _roles(session, token, Target("system", SYSTEM))
        return token.model_copy(update={"system": True, "roles": roles})
    raise Unauthorized(DENIED)  # trusts: there are none


def _scope_to_project(session: Session, token: Token, ref: HousedRef) -> Token:
    found = ref.find(session, Project)
    if found is None:
        raise Unauthorized(DENIED)
    project, home = found
    roles = _roles(session, token, Target("project", project.id))
    return token.model_copy(update={"project": _housed(project, home), "roles": roles})


def _scope_to_default(session: Session, token: Token) -> Token:
    """To the user's default project, if there is one they can use; else unscoped, without a word."""
    user = identity.get(session, User, token.user_id)
    if not user.default_project_id:
        return token
    try:
        return _scope_to_project(session, token, HousedRef(id=user.default_project_id))
    except Unauthorized:
        return token


def _scope_to_credential(
    session: Session, token: Token, credential_id: str, auth: Auth, renewing: bool
) -> Token:
    """To the credential's project with the credential's roles, nothing else: also when a token got
    with it is exchanged, or its limits could be shaken off."""
    row = session.get(ApplicationCredential, credential_id)
    if row is None or row.user_id != token.user_id or (row.expires_at and row.expires_at <= now()):
        raise Unauthorized(DENIED)
    scoped = _scope_to_project(session, token, HousedRef(id=row.project_id))
    if auth.scope is not None and not (renewing and _asks_for(session, auth, row.project_id)):
        raise Unauthorized(DENIED)
    held = implied(scoped.roles)
    wanted = [session.get(Role, role_id) for role_id in row.role_ids]
    roles = tuple(sorted(r.name for r in wanted if r and r.name in held))
    if not roles:
        raise Unauthorized(DENIED)
    ends = [token.expires_at, *([row.expires_at.replace(microsecond=0)] if row.expires_at else [])]
    claim = CredentialClaim(i=row.id, n=row.name, r=not row.unrestricted)
    return scoped.model_copy(update={"roles": roles, "credential": claim, "expires_at": min(ends)})


def _asks_for(session: Session, auth: Auth, project_id: str) -> bool:
    found = auth.asked.project.find(session, Project) if auth.asked and auth.asked.project else None
    return found is not None and found[0].id == project_id


def _roles(session: Session, token: Token, target: Target) -> tuple[str, ...]:
    roles = tuple(r.name for r in identity.granted_roles(session, token.user_id, target))
    if not roles:
        raise Unauthorized(DENIED)
    return roles


def _named(domain: Domain) -> Named:
    return Named(i=domain.id, n=domain.name)


def _housed(project: Project, home: Domain) -> Housed:
    return Housed(i=project.id, n=project.name, d=_named(home))
