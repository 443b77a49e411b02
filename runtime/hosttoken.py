"""Short-lived tokens by which a host proves to the control plane which host it is."""

from __future__ import annotations

import time

import jwt

from domain.errors import Unauthorized
from runtime.sealing import host_key

HEADER = "X-Host-Token"
LIFETIME_S = 60
LEEWAY_S = 60
"""How far the clocks of a host and the control plane may be apart."""
_ALGORITHM = "HS256"
_AUDIENCE = "duranova-control"


def host_token(key: str, host: str) -> str:
    """A fresh token, signed with the host's key (``runtime.sealing.host_key``); one per call is fine."""
    now = int(time.time())
    claims = {"sub": host, "aud": _AUDIENCE, "iat": now, "exp": now + LIFETIME_S}
    return jwt.encode(claims, key, _ALGORITHM)


def verify_host_token(secret_key: str, token: str) -> str:
    """The host that signed the token. Unauthorized for anything else, saying nothing about why."""
    try:
        unproven = jwt.decode(token, options={"verify_signature": False})
        claims = jwt.decode(
            token,
            host_key(secret_key, str(unproven.get("sub", ""))),
            [_ALGORITHM],
            audience=_AUDIENCE,
            leeway=LEEWAY_S,
            options={"require": ["sub", "aud", "iat", "exp"]},
        )
    except jwt.InvalidTokenError:
        raise Unauthorized("A host's valid token is required.") from None
    if claims["exp"] - claims["iat"] > LIFETIME_S or not claims["sub"]:
        raise Unauthorized("A host's valid token is required.")
    return str(claims["sub"])
