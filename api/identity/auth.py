"""/v3/auth: get, check and take back tokens; what the owner of one may do with it."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Response
from pydantic import BaseModel
from sqlmodel import Session

from api.answers import AnsweringRoute
from api.context import Cloud, Db, TheCloud, allow
from api.identity.catalog import catalog
from api.identity.links import TheLinks, flag
from api.identity.login import Auth, login
from api.identity.projects import domain_view, project_view
from api.policy import Caller, implied, permits
from api.tokens import Named, Token
from db import identity
from db.identity import SYSTEM, Target
from db.session import reading
from domain.errors import Forbidden, NotFound, Unauthorized
from runtime.settings import Settings

router = APIRouter(route_class=AnsweringRoute)
_limiter: RunVar[CapacityLimiter] = RunVar("logins")
SubjectToken = Annotated[str, Header(alias="X-Subject-Token", min_length=1)]


class Authenticate(BaseModel):
    """A login."""

    auth: Auth


@router.post("/v3/auth/tokens", status_code=201)
async def issue_token(
    body: Authenticate,
    cloud: TheCloud,
    response: Response,
    nocatalog: str | None = None,
) -> dict[str, Any]:
    """Log in. Public: whoever asks has no token yet."""
    settings = None if flag(nocatalog) else cloud.settings
    # A password check keeps a core busy. Those that wait for theirs wait here: in threads, a storm of
    # logins would leave none to the requests of those who are in.
    limiter = None if body.auth.identity.methods == ["token"] else _checks()
    text, answer = await run_sync(_issue, cloud, body.auth, settings, limiter=limiter)
    response.headers["X-Subject-Token"] = text
    response.headers["Vary"] = "X-Auth-Token"
    return answer


def _issue(cloud: Cloud, auth: Auth, settings: Settings | None) -> tuple[str, dict[str, Any]]:
    token = login(cloud, auth)
    with reading(cloud.engine) as session:
        return cloud.tokens.issue(token), _token_view(session, token, settings)


def _checks() -> CapacityLimiter:
    """One for each event loop."""
    try:
        return _limiter.get()
    except LookupError:
        _limiter.set(CapacityLimiter(os.cpu_count() or 1))
        return _limiter.get()


def _instant(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _name(ref: Named) -> dict[str, str]:
    return {"id": ref.id, "name": ref.name}


def _token_view(session: Session, token: Token, settings: Settings | None) -> dict[str, Any]:
    """The body of a token; with its catalog if ``settings`` are given and it has a scope."""
    view: dict[str, Any] = {
        "methods": token.methods,
        "user": {
            "id": token.user_id,
            "name": token.user_name,
            "domain": _name(token.user_domain),
            "password_expires_at": None,
        },
        "audit_ids": token.audit_ids,
        "issued_at": _instant(token.issued_at),
        "expires_at": _instant(token.expires_at),
    }
    if token.project:
        view["project"] = _name(token.project) | {"domain": _name(token.project.domain)}
        view["is_domain"] = False
    if token.domain:
        view["domain"] = _name(token.domain)
    if token.system:
        view["system"] = {"all": True}
    if token.roles:
        roles = identity.roles_named(session, set(implied(token.roles)))
        view["roles"] = [{"id": r.id, "name": r.name} for r in roles]
        if settings is not None:
            view["catalog"] = catalog(settings)
    if token.credential:
        restricted = token.credential.restricted
        view["application_credential"] = _name(token.credential) | {"restricted": restricted}
    return {"token": view}


def _subject(session: Session, cloud: TheCloud, text: str, who: Caller) -> Token:
    """The token in question: one's own, or any for those who may read the identity service."""
    try:
        token = cloud.tokens.read(session, text)
    except Unauthorized:
        raise NotFound("Failed to validate token") from None
    if token.id != who.token_id and not permits(who, "identity:read"):
        raise Forbidden(
            "You are not authorized to perform the requested action: identity:validate_token."
        )
    return token


@router.get("/v3/auth/tokens")
@router.head("/v3/auth/tokens", include_in_schema=False)
def show_token(
    x_subject_token: SubjectToken,
    who: Annotated[Caller, allow("identity:self")],
    db: Db,
    cloud: TheCloud,
    response: Response,
    nocatalog: str | None = None,
) -> dict[str, Any]:
    """What a token says, if it is still good; 404 if not."""
    token = _subject(db, cloud, x_subject_token, who)
    response.headers["X-Subject-Token"] = x_subject_token
    response.headers["Vary"] = "X-Auth-Token"
    return _token_view(db, token, None if flag(nocatalog) else cloud.settings)


@router.delete("/v3/auth/tokens", status_code=204)
def revoke_token(
    x_subject_token: SubjectToken,
    who: Annotated[Caller, allow("identity:self")],
    db: Db,
    cloud: TheCloud,
) -> None:
    """Take a token back."""
    token = _subject(db, cloud, x_subject_token, who)
    if token.id != who.token_id and not permits(who, "identity:admin"):
        raise Forbidden(
            "You are not authorized to perform the requested action: identity:revoke_token."
        )
    identity.revoke_token(db, token.id, token.expires_at)


@router.get("/v3/auth/catalog")
def show_catalog(
    who: Annotated[Caller, allow("identity:self")], cloud: TheCloud, links: TheLinks
) -> dict[str, Any]:
    """The catalog of a scoped token."""
    if not (who.project_id or who.domain_id or who.system):
        raise Forbidden(
            "A project-scoped or domain-scoped token is required to produce a service catalog."
        )
    return {"catalog": catalog(cloud.settings), "links": links.of("auth", "catalog")}


@router.get("/v3/auth/projects")
def list_own_projects(
    who: Annotated[Caller, allow("identity:self")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """The projects the caller could have a token for."""
    found = (p for p in identity.projects_of(db, who.user_id) if p.enabled)
    return links.listing("projects", (project_view(p, links) for p in found))


@router.get("/v3/auth/domains")
def list_own_domains(
    who: Annotated[Caller, allow("identity:self")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """The domains the caller could have a token for."""
    found = (d for d in identity.domains_of(db, who.user_id) if d.enabled)
    return links.listing("domains", (domain_view(d, links) for d in found))


@router.get("/v3/auth/system")
def list_own_systems(
    who: Annotated[Caller, allow("identity:self")], db: Db, links: TheLinks
) -> dict[str, Any]:
    """Whether the caller could have a token for the system."""
    roles = identity.granted_roles(db, who.user_id, Target("system", SYSTEM))
    return {"system": [{"all": True}] if roles else [], "links": links.of("auth", "system")}
