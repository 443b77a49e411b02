"""What is done about guests that changed by themselves: each correction is an operation that users see."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import structlog
from sqlmodel import Session

from api.launch import Launcher
from api.policy import Caller
from db.operations import count_corrections, live_operations, record_correction
from db.reconcilers import note_success
from db.servers import Server
from db.session import now
from domain.drift import FOLLOWED, RESTORATIONS, PowerPolicy, Restoration
from domain.errors import DuranovaError
from domain.ids import SYSTEM_USER
from domain.states import PowerState, VmState
from runtime.settings import Settings

SYSTEM = Caller(SYSTEM_USER, SYSTEM_USER, "", frozenset({"admin"}), system=True)
"""Who asks for the corrections that Duranova makes by itself."""

Suspect = tuple[Server, int, datetime]
"""A server, its guest's power state, and the ``updated_at`` that the row had when both were compared."""

_log = structlog.get_logger(__name__)
_AGAIN = Restoration("reboot_hard", follow=False)
_WORN_OUT = "restored too often"


def policy_of(server: Server, settings: Settings) -> PowerPolicy:
    """The server's own policy, or the cloud's."""
    return PowerPolicy(server.power_policy or settings.power_drift_policy)


class Drift:
    """Corrects servers, each in a transaction of its own; a user who was quicker wins."""

    def __init__(
        self, session: Session, launcher: Launcher, settings: Settings, request_id: str
    ) -> None:
        """``request_id`` of the report that told of the guests."""
        self._session = session
        self._launcher = launcher
        self._settings = settings
        self._request_id = request_id

    def correct(self, suspects: list[Suspect]) -> None:
        """Follow each guest or bring back the wish, as its server's policy says."""
        for server, power_state, _ in self._still_idle(suspects):
            found = PowerState(power_state)
            way = RESTORATIONS.get((VmState(server.vm_state), FOLLOWED[found]))
            wanted = policy_of(server, self._settings) is PowerPolicy.RESTORE
            if wanted and way is not None and not self._worn_out(server):
                self._restore(server, found, way, "power drift")
            else:
                self._follow(server, found, _WORN_OUT if wanted and way is not None else "")
                self._session.commit()

    def restore_lost(self, suspects: list[Suspect]) -> None:
        """Start guests that went down with their host, whatever the policy and however often: nobody wished
        them down. Only a guest that could not be started several times is given up."""
        for server, power_state, _ in self._still_idle(suspects):
            if self._worn_out(server, failed=True):
                self._follow(server, PowerState(power_state), _WORN_OUT)
                self._session.commit()
            else:
                self._restore(server, PowerState(power_state), _AGAIN, "host restart")

    def _still_idle(self, suspects: list[Suspect]) -> Iterator[Suspect]:
        """Those to which nothing has happened since the report was looked at, one after the other, each
        with its row locked."""
        for suspect in sorted(suspects, key=lambda each: each[0].id):
            server, _, seen = suspect
            self._session.refresh(server, with_for_update=True)
            if server.updated_at == seen and not live_operations(self._session, server.id):
                yield suspect
            else:
                self._session.rollback()

    def _worn_out(self, server: Server, *, failed: bool = False) -> bool:
        """Whether it was restored so often lately, or in vain, that another time would only be one more."""
        since = now() - timedelta(seconds=self._settings.power_restore_window_s)
        made = count_corrections(self._session, server.id, SYSTEM_USER, since, failed=failed)
        return made >= self._settings.power_restore_limit

    def _follow(self, server: Server, found: PowerState, why: str = "") -> None:
        was, server.vm_state = server.vm_state, FOLLOWED[found]
        server.power_state = found
        server.updated_at = now()
        self._session.add(server)
        details = f"The server was {was}, its guest {found.name.lower()}; the record follows"
        record_correction(
            self._session,
            server,
            "follow_guest",
            self._request_id,
            f"{details}: {why}" if why else details,
        )
        note_success(self._session, "power", now(), fixes=1)
        _log.info("followed a guest", server_id=server.id, vm_state=server.vm_state, reason=why)

    def _restore(self, server: Server, found: PowerState, way: Restoration, cause: str) -> None:
        wish = server.vm_state
        if way.follow:
            self._follow(server, found)
        else:
            note_success(self._session, "power", now(), fixes=1)
        self._session.flush()  # what follows reads the row anew
        given = {"cause": cause, "wish": wish}
        try:
            self._launcher.act(
                self._session, SYSTEM, server, way.lifecycle, self._request_id, given
            )
            _log.info("guest restored", server_id=server.id, by=way.lifecycle, wish=wish)
        except DuranovaError as error:
            self._session.rollback()
            _log.warning("guest not restored", server_id=server.id, error=error.message)
