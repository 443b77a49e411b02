"""The credential of a host: a JWT it signs with its own key for each call to the control plane."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import jwt

_ALGORITHM = "HS256"
LIFE = timedelta(minutes=2)
_SKEW = timedelta(minutes=5)


def host_token(key: str, host: str) -> str:
    """A fresh token for one call, sent as ``X-Host-Token``."""
    now = datetime.now(UTC)
    return jwt.encode({"sub": host, "iat": now, "exp": now + LIFE}, key, _ALGORITHM)


def check_host_token(key: str, host: str, token: str) -> bool:
    """Whether this host signed this token and it is still good. Clocks may differ by some minutes."""
    try:
        claims = jwt.decode(
            token, key, [_ALGORITHM], leeway=_SKEW, options={"require": ["sub", "iat", "exp"]}
        )
    except jwt.InvalidTokenError:
        return False
    short_lived = claims["exp"] - claims["iat"] <= LIFE.total_seconds()
    return bool(claims["sub"] == host) and short_lived
