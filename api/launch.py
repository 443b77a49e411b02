"""THE deep one: guard → record → commit → start the workflow → 202 or 409.

A crash between commit and start leaves an *accepted* operation; the sweep starts it again under the
same workflow id, so twice is once.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from api.policy import Caller
from db.operations import Operation
from db.servers import Server


class Launcher:
    """Turns an accepted request into a running workflow. Called from handlers that run in a thread."""

    def create(
        self, session: Session, who: Caller, servers: list[Server], request_id: str
    ) -> list[Operation]:
        """Record a ``create`` operation per new server row (already added, with ports), commit, start.

        Commits the session. The servers are BUILD/scheduling afterwards.
        """
        raise NotImplementedError

    def act(
        self,
        session: Session,
        who: Caller,
        server: Server,
        lifecycle: str,
        request_id: str,
        input: dict[str, Any] | None = None,
    ) -> Operation:
        """Record and start one operation on an existing server: guard by the lifecycle table, refuse
        while another operation owns the server (ServerBusy) or it is locked for this caller (Conflict).

        Commits the session. ``delete`` is accepted in every state and wins over a running operation.
        """
        raise NotImplementedError

    def read_console(self, host: str, server_id: str, max_bytes: int) -> bytes:
        """The tail of a guest's console from its host. Unavailable when the host does not answer."""
        raise NotImplementedError

    def refresh_hosts(self, hosts: set[str]) -> None:
        """Tell these hosts that filtering rules of their ports changed; call after commit."""
        raise NotImplementedError
