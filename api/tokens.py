"""Tokens: signed, short-lived, revocable."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta
from functools import lru_cache

import jwt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlmodel import Session

from api.policy import Caller
from db import identity
from db.session import now
from domain.errors import BadRequest, Unauthorized
from runtime.settings import Settings

DENIED = "The request you have made requires authentication."
"""What Keystone says to whoever is not let in, whatever the reason."""
_ALGORITHM = "HS256"


class Named(BaseModel):
    """An id with its name."""

    model_config = ConfigDict(frozen=True)
    id: str = Field(alias="i")
    name: str = Field(alias="n")


class Housed(Named):
    """A user or project with its domain."""

    domain: Named = Field(alias="d")


class CredentialClaim(Named):
    """The application credential a token was got with."""

    restricted: bool = Field(alias="r")


class Token(BaseModel):
    """What a token says. Its short aliases are the claims: a token travels with every request."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)
    id: str = Field(alias="jti")
    user_id: str = Field(alias="sub")
    user_name: str = Field(alias="un")
    user_domain: Named = Field(alias="ud")
    methods: tuple[str, ...] = Field(alias="m")
    issued_at: datetime = Field(alias="iat")
    expires_at: datetime = Field(alias="exp")
    parent_id: str | None = Field(default=None, alias="par")
    """The token that began the chain of re-scoped ones."""
    project: Housed | None = Field(default=None, alias="p")
    domain: Named | None = Field(default=None, alias="d")
    system: bool = Field(default=False, alias="s")
    roles: tuple[str, ...] = Field(default=(), alias="r")
    """As granted, without those they imply."""
    credential: CredentialClaim | None = Field(default=None, alias="ac")

    @property
    def audit_ids(self) -> list[str]:
        """Its own and, if it was got with another token, that chain's first."""
        return [self.id] if self.parent_id is None else [self.id, self.parent_id]

    @property
    def caller(self) -> Caller:
        """Who asks, as the policy sees it."""
        return Caller(
            user_id=self.user_id,
            user_name=self.user_name,
            project_id=self.project.id if self.project else "",
            roles=frozenset(self.roles),
            token_id=self.id,
            user_domain_id=self.user_domain.id,
            project_name=self.project.name if self.project else "",
            project_domain_id=self.project.domain.id if self.project else "",
            system=self.system,
            domain_id=self.domain.id if self.domain else "",
            restricted=self.credential is not None and self.credential.restricted,
        )


def new_token_id() -> str:
    """A fresh audit id: 128 random bits in 22 characters."""
    return secrets.token_urlsafe(16)


class Tokens:
    """Issues and checks the cloud's bearer tokens (JWT, HS256 under the secret key).

    BadRequest when the secret key is shorter than 32 characters.
    """

    def __init__(self, settings: Settings) -> None:
        secret = settings.secret_key.get_secret_value()
        if len(secret) < 32:
            raise BadRequest("DURANOVA_SECRET_KEY must have at least 32 characters")
        # A key of its own purpose: nothing else that is signed or sealed can pass for a token.
        self._key = hmac.new(secret.encode(), b"duranova-token", hashlib.sha256).digest()
        self._life = timedelta(seconds=settings.token_ttl_s)
        # A text means the same for ever; whether it still counts is asked each time.
        self._decoded = lru_cache(maxsize=4096)(self._decode)

    def expiry(self, issued_at: datetime) -> datetime:
        """When a token issued then ends, in whole seconds."""
        return (issued_at + self._life).replace(microsecond=0)

    def issue(self, token: Token) -> str:
        """The signed text to hand out."""
        claims = token.model_dump(by_alias=True, exclude_defaults=True)
        claims["iat"] = token.issued_at.timestamp()
        claims["exp"] = int(token.expires_at.timestamp())
        return jwt.encode(claims, self._key, _ALGORITHM)

    def open(self, text: str) -> Token:
        """What a token says, without asking whether it still stands. Unauthorized when it is forged or
        expired."""
        try:
            token = self._decoded(text)
        except (jwt.InvalidTokenError, ValidationError):
            raise Unauthorized(DENIED) from None
        if token.expires_at <= now():
            raise Unauthorized(DENIED)
        return token

    def check_standing(self, session: Session, token: Token) -> None:
        """Unauthorized when the token was revoked, or what it rests on (user, project, domain,
        application credential) was disabled or deleted."""
        if not identity.still_stands(session, _bearer(token)):
            raise Unauthorized(DENIED)

    def read(self, session: Session, text: str) -> Token:
        """What a token says. Unauthorized when it is forged or expired, or stands no longer."""
        token = self.open(text)
        self.check_standing(session, token)
        return token

    def _decode(self, text: str) -> Token:
        claims = jwt.decode(
            text,
            self._key,
            [_ALGORITHM],
            # Another replica's clock may be a moment ahead of ours.
            options={"require": ["exp", "iat", "jti", "sub"], "verify_iat": False},
        )
        return Token.model_validate(claims)

    def validate(self, session: Session, token: str) -> Caller:
        """Who this token stands for. Unauthorized when it is forged, expired or revoked."""
        return self.read(session, token).caller


def _bearer(token: Token) -> identity.Bearer:
    return identity.Bearer(
        token_id=token.id,
        issued_at=token.issued_at,
        user_id=token.user_id,
        project_id=token.project.id if token.project else "",
        domain_id=token.domain.id if token.domain else "",
        application_credential_id=token.credential.id if token.credential else "",
    )
