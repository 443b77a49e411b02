"""/operations/v1/orphans: what hosts report that no server of the record accounts for. Shown, never removed:
that the record does not know a guest is no proof against it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel

from api.answers import AnsweringRoute
from api.context import Db, allow
from api.policy import Caller
from db.sightings import sightings_of

router = APIRouter(route_class=AnsweringRoute)


class OrphanView(BaseModel):
    """One guest, or what is left of one."""

    host: str
    server_id: str
    """As the host names it; or the name of a thing that belongs to no server."""
    kind: str
    """``guest`` or ``residue``."""
    reason: str
    power_state: int | None
    epoch: int | None
    reported_at: datetime | None


class Orphans(BaseModel):
    """Those of every host, by host."""

    orphans: list[OrphanView]


@router.get("/v1/orphans")
def list_orphans(who: Annotated[Caller, allow("orphans:read")], db: Db) -> Orphans:
    """As of each host's last report."""
    return Orphans(
        orphans=[
            OrphanView(host=sighting.host, reported_at=reported_at, **orphan)
            for sighting, reported_at in sightings_of(db)
            for orphan in sighting.orphans
        ]
    )
