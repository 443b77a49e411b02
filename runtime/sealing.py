"""Keys: sealing of small secrets that cross a workflow history or rest in a row, and the keys of hosts."""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken

from domain.errors import BadRequest


def host_key(secret_key: str, host: str) -> str:
    """The key of one host, derived from the cloud's: it signs the host's calls and seals what it sends."""
    return hmac.new(
        secret_key.encode(), b"duranova-host:" + host.encode(), hashlib.sha256
    ).hexdigest()


class Sealer:
    """Encrypts bytes under a cloud's or a host's key (Fernet: AES-CBC + HMAC)."""

    def __init__(self, secret_key: str) -> None:
        if len(secret_key) < 32:
            raise BadRequest("DURANOVA_SECRET_KEY must have at least 32 characters")
        digest = hashlib.sha256(b"duranova-seal:" + secret_key.encode()).digest()
        self._print_key = hmac.new(secret_key.encode(), b"duranova-print", hashlib.sha256).digest()
        self._fernet = Fernet(base64.urlsafe_b64encode(digest))

    def seal(self, data: bytes) -> str:
        """Ciphertext, safe in a history."""
        return self._fernet.encrypt(data).decode()

    def fingerprint(self, data: bytes) -> str:
        """Equal for equal data, and without the key no help in guessing them: 64 hexadecimal digits."""
        return hmac.new(self._print_key, data, hashlib.sha256).hexdigest()

    def unseal(self, sealed: str) -> bytes:
        """What ``seal`` was given. BadRequest when it was sealed with another key."""
        try:
            return self._fernet.decrypt(sealed.encode())
        except InvalidToken:
            raise BadRequest("sealed data was made with another secret key") from None
