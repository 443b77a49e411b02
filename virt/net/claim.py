"""One host per network namespace: two would replace each other's filter rules."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from domain.errors import GuestFailure

_PREFIX = "duranova-host/"


class Claim:
    """A host's hold on the network namespace it lives in, for as long as its process does.

    It is a socket with an abstract name: such names are unique within a network namespace, and die with
    their process.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._socket: socket.socket | None = None

    def take(self) -> None:
        """Hold the namespace of the calling thread. GuestFailure if another host's process does.

        The same host may come twice: a worker and its successor overlap for a moment.
        """
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(OSError):
                self._socket.bind(f"\0{_PREFIX}{self._host}")
        others = _holders() - {self._host}
        if others:
            self.release()
            raise GuestFailure(f"Host {min(others)} already wires this network namespace")

    def release(self) -> None:
        """Let go."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _holders() -> set[str]:
    lines = Path("/proc/thread-self/net/unix").read_text().splitlines()
    names = (line.partition(f"@{_PREFIX}")[2] for line in lines)
    return {name for name in names if name}
