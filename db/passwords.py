"""How passwords and secrets rest in a row: argon2id, in its own text form."""

from __future__ import annotations

import os
import secrets
from functools import cache
from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MAX_LENGTH = 4096
"""Longest password accepted, in characters, as in Keystone."""
# OWASP's minimum: ~10 ms a piece, so that a small machine still logs in dozens of clients a second.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
# Each computation takes 19 MiB: a storm of logins must queue instead of filling the memory.
_turn = BoundedSemaphore(2 * (os.cpu_count() or 1))


def hash_password(password: str) -> str:
    """The text to keep. Takes ~10 ms of a core: call it outside of transactions."""
    with _turn:
        return _hasher.hash(password)


def verify_password(kept: str | None, password: str) -> bool:
    """Whether this is the password. Takes as long when there is none kept, so that an answer's time
    does not tell which users exist."""
    try:
        with _turn:
            _hasher.verify(kept or _nobodys(), password)
    except (VerificationError, InvalidHashError):
        return False
    return kept is not None


def hash_anew(kept: str | None, password: str) -> str | None:
    """The text to keep instead of what is kept of this password, if that was made with other parameters
    than are used now; else None."""
    stale = kept is not None and _hasher.check_needs_rehash(kept)
    return hash_password(password) if stale else None


@cache
def _nobodys() -> str:
    return _hasher.hash(secrets.token_urlsafe(32))
