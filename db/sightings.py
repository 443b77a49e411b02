"""What each host said last of the guests and leftovers on it: what the record is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exists, func
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import instant, json_column
from db.hosts import Host
from db.operations import Operation
from db.servers import Server
from domain.guest import GuestReport
from domain.states import LIVE_OPERATION_STATES


class HostSighting(SQLModel, table=True):
    """The newest report of one host. Written only when it says something new: a thousand hosts report
    every ten seconds, and nearly always the same."""

    __tablename__ = "host_sighting"
    host: str = Field(foreign_key="host.name", max_length=255, primary_key=True, ondelete="CASCADE")
    guests: dict[str, Any] = json_column()
    """server id → [power state, epoch]"""
    residue: list[str] = json_column(list)
    """Ids of servers that have something on the host but no guest, and names of what belongs to none."""
    residue_at: datetime | None = instant()
    """When the host looked for residue last, where it said so."""
    orphans: list[dict[str, Any]] = json_column(list)
    """``Orphan`` as dicts: those of the guests and the residue that the record does not want there."""
    orphan_count: int = 0


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something on a host that no server of the record accounts for."""

    server_id: str
    """Or the name of a thing that belongs to no server."""
    kind: str
    """``guest`` or ``residue``."""
    reason: str
    power_state: int | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the record knew of a host before its report."""

    host: Host | None
    sighting: HostSighting | None
    hosts: int
    """How many hosts there are."""


def recall(session: Session, host: str) -> Known:
    """Read with one query what ``report_host`` and ``note_sighting`` need. They take it from the session,
    as long as the caller keeps the answer."""
    count = select(func.count()).select_from(Host).scalar_subquery()
    query = (
        select(Host, HostSighting, count)
        .outerjoin(HostSighting, col(HostSighting.host) == Host.name)
        .where(Host.name == host)
    )
    return Known(*(session.exec(query).first() or (None, None, 0)))


def note_sighting(
    session: Session,
    host: str,
    guests: Iterable[GuestReport],
    residue: Iterable[str] | None,
    at: datetime,
) -> HostSighting:
    """Take down what a host reports; ``residue`` is None when it did not look for any this time."""
    row = session.get(HostSighting, host) or HostSighting(host=host)
    said: dict[str, Any] = {
        "guests": {g.server_id: [int(g.power_state), g.epoch] for g in guests},
        "residue": row.residue if residue is None else sorted(set(residue)),
    }
    orphans = find_orphans(session, host, said["guests"], said["residue"])
    said["orphans"] = [_as_dict(o) for o in orphans]
    said["orphan_count"] = len(orphans)
    if residue is not None and said["residue"] != []:
        said["residue_at"] = at  # else it does not matter when that was
    for name, value in said.items():
        if getattr(row, name) != value:
            setattr(row, name, value)
    session.add(row)
    return row


def _as_dict(orphan: Orphan) -> dict[str, Any]:
    return {
        "server_id": orphan.server_id,
        "kind": orphan.kind,
        "reason": orphan.reason,
        "power_state": orphan.power_state,
        "epoch": orphan.epoch,
    }


def find_orphans(
    session: Session, host: str, guests: dict[str, Any], residue: Iterable[str]
) -> list[Orphan]:
    """Those of a host's guests and leftovers that do not belong there. What a live operation owns is on
    its way and never among them."""
    leftovers = list(residue)
    places = places_of(session, [*guests, *leftovers])
    found = []
    for server_id, (power_state, epoch) in guests.items():
        reason = places.get(server_id, UNKNOWN).wrong_on(host)
        if reason:
            found.append(Orphan(server_id, "guest", reason, power_state, epoch))
    for name in leftovers:
        place = places.get(name, UNKNOWN)
        if not place.busy and name not in guests:
            found.append(Orphan(name, "residue", place.wrong_on(host) or "it has no guest here"))
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where the record wants a server."""

    known: bool = True
    busy: bool = False
    deleted: bool = False
    host: str | None = None
    updated_at: datetime | None = None

    def wrong_on(self, host: str) -> str:
        """Why the server has no business on this host; empty when it may have."""
        if self.busy:
            return ""
        if not self.known:
            return "the record does not know the server"
        if self.deleted:
            return "the server is deleted"
        if self.host is None:
            return "the server is on no host"
        return "" if self.host == host else f"the server is on {self.host}"


UNKNOWN = Place(known=False)
_CHUNK = 500
"""Below every database's limit of parameters."""


def places_of(session: Session, ids: list[str]) -> dict[str, Place]:
    """Server id → its place; what is no server's id is missing."""
    found: dict[str, Place] = {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        busy = exists().where(
            col(Operation.server_id) == Server.id, col(Operation.state).in_(LIVE_OPERATION_STATES)
        )
        query = sa.select(
            col(Server.id), busy, col(Server.deleted_at), col(Server.host), col(Server.updated_at)
        ).where(col(Server.id).in_(chunk))
        rows = session.connection().execute(query)
        for server_id, is_busy, deleted_at, host, updated_at in rows:
            found[server_id] = Place(
                busy=bool(is_busy),
                deleted=deleted_at is not None,
                host=host,
                updated_at=updated_at,
            )
    return found


def sightings_of(session: Session) -> list[tuple[HostSighting, datetime | None]]:
    """Each host's sighting and when it reported last, by name."""
    query = select(HostSighting, Host.reported_at).join(Host).order_by(HostSighting.host)
    return [(row, reported_at) for row, reported_at in session.exec(query)]


def orphan_counts(session: Session) -> dict[str, int]:
    """Host → orphans on it, as of its last report."""
    query = select(HostSighting.host, HostSighting.orphan_count)
    return dict(session.exec(query).all())
