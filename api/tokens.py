"""Tokens: signed, short-lived, revocable."""

from __future__ import annotations

from sqlmodel import Session

from api.policy import Caller
from runtime.settings import Settings


class Tokens:
    """Issues and checks the cloud's bearer tokens (JWT, HS256 under the secret key)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def validate(self, session: Session, token: str) -> Caller:
        """Who this token stands for. Unauthorized when it is forged, expired or revoked."""
        raise NotImplementedError  # being written
