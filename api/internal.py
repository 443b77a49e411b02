"""What hosts ask of the control plane: reports in, images out. Authenticated by the host's own key."""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel
from sqlmodel import Session, col, select

from api.answers import AnsweringRoute
from api.context import Db, TheCloud
from api.drift import Drift
from api.hostauth import TheHost
from db.hosts import Claim, Host, report_host, told_nics
from db.images import Image
from db.operations import Operation
from db.reconcilers import note_success
from db.servers import Server
from db.session import now
from db.sightings import note_sighting, recall
from domain.drift import DOWN, drifted
from domain.errors import NotFound
from domain.guest import Fence, GuestReport, Inventory
from domain.states import LIVE_OPERATION_STATES, PowerState, VmState
from runtime.settings import Settings

router = APIRouter(route_class=AnsweringRoute)

_log = structlog.get_logger(__name__)
_REPORTS_PER_S = 50
"""Of all hosts together, wanted at most: one costs some 2 ms of a core."""
_REPORTS_TO_MISS = 3
"""A host that is well may miss so many and one more before it counts as silent."""


class Report(BaseModel):
    """What a host worker says about itself every few seconds, and at once after a guest changed."""

    epoch: str
    """Of the worker's start."""
    availability_zone: str | None = None
    inventory: Inventory
    guests: list[GuestReport]
    residue: list[str] | None = None
    """Ids of servers that have something there but no guest, and names of what belongs to none; None when
    the host did not look this time."""


class Answer(BaseModel):
    """What the host is told back."""

    interval_s: float
    peers: list[str]
    """Underlay addresses of the other hosts."""


@router.post("/v1/hosts/{host}/report")
def report(host: TheHost, body: Report, request: Request, db: Db, cloud: TheCloud) -> Answer:
    """Take a host's report: inventory, power states, guests that should not be there."""
    known = recall(db, host)  # held, so that what follows finds it in the session
    row = report_host(db, host, body.inventory, body.epoch, now(), body.availability_zone)
    db.flush()
    note_sighting(db, host, body.guests, body.residue, now())
    idle = _idle_servers(db, [g.server_id for g in body.guests])
    seen = [(idle[g.server_id], g) for g in body.guests if g.server_id in idle]
    # Unknown and busy servers are passed over: absence of knowledge never destroys.
    stale = [(s.id, g.epoch) for s, g in seen if _moved_on(s, host, g)]
    at_home = [(s, g) for s, g in seen if s.host == host and s.deleted_at is None]
    lost = [(s, g) for s, g in at_home if _died_with_host(s, g, body.epoch)]
    lost_ids = {s.id for s, _ in lost}
    changed = [
        (s, g) for s, g in at_home if s.id not in lost_ids and drifted(s.vm_state, g.power_state)
    ]
    for server in (s for s, g in at_home if g.power_state == PowerState.RUNNING):
        server.seen_by = body.epoch
    confirmed, pending = _confirm(row, changed)
    if stale:
        note_success(db, "purge", now(), fixes=len(stale))
    db.add(row)
    db.commit()
    for server_id, epoch in stale:
        _log.warning("stale guest purged", host=host, server_id=server_id, epoch=epoch)
        cloud.launcher.purge(host, server_id, Fence(epoch, "purge"))
    drift = Drift(db, cloud.launcher, cloud.settings, request.scope["request_id"])
    drift.restore_lost([(s, g.power_state, s.updated_at) for s, g in lost])
    drift.correct([(s, g.power_state, s.updated_at) for s, g in confirmed])
    if row.nics_wanted > row.nics_told and cloud.launcher.refresh_hosts({host}):
        told_nics(db, host, row.nics_wanted)
    interval_s = 0.0 if pending else report_interval_s(cloud.settings, known.hosts)
    return Answer(interval_s=interval_s, peers=_peers(db, row))


def report_interval_s(settings: Settings, hosts: int) -> float:
    """How often each of so many hosts is to report: as the settings say, and in a large cloud less often,
    for its reports cost the control plane more than they tell; but never so seldom that a report or two
    that get lost make a host look silent."""
    longest_s = settings.host_silent_after_s / _REPORTS_TO_MISS
    return max(settings.report_interval_s, min(hosts / _REPORTS_PER_S, longest_s))


def _peers(session: Session, host: Host) -> list[str]:
    loopback = "127.0.0.1"  # what a host says that shares its networks with nobody
    query = select(Host.host_ip).where(Host.host_ip != host.host_ip, Host.host_ip != loopback)
    return sorted(set(session.exec(query))) if host.host_ip != loopback else []


@router.get("/v1/hosts/{host}/images/{image_id}")
def image_bytes(host: TheHost, image_id: str, db: Db, cloud: TheCloud) -> FileResponse:
    """The stored bytes of an image that some server of this host was made from."""
    wanted = select(Server.id).join(Claim).where(Claim.host == host, Server.image_id == image_id)
    image = db.get(Image, image_id)
    path = cloud.settings.image_dir / image_id
    if image is None or db.exec(wanted).first() is None or not path.is_file():
        raise NotFound(f"No image {image_id} for host {host}")
    return FileResponse(path, media_type="application/octet-stream")


def _idle_servers(session: Session, ids: list[str]) -> dict[str, Server]:
    """Servers of these ids that no live operation owns, deleted ones included."""
    if not ids:
        return {}
    busy = select(Operation.server_id).where(col(Operation.state).in_(LIVE_OPERATION_STATES))
    query = select(Server).where(col(Server.id).in_(ids), col(Server.id).not_in(busy))
    return {server.id: server for server in session.exec(query)}


def _moved_on(server: Server, host: str, guest: GuestReport) -> bool:
    """Positive proof that the guest has no business on this host any more."""
    if server.deleted_at is not None:
        return guest.epoch <= server.epoch
    return server.host != host and guest.epoch < server.epoch


def _died_with_host(server: Server, guest: GuestReport, epoch: str) -> bool:
    """It ran under an earlier start of the host's worker, and this one finds it down. However long its
    server was busy meanwhile, or its restoration refused: the next report says the same again."""
    return (
        guest.power_state in DOWN
        and server.vm_state == VmState.ACTIVE
        and server.seen_by not in (None, epoch)
    )


def _confirm(
    host: Host, drifted: list[tuple[Server, GuestReport]]
) -> tuple[list[tuple[Server, GuestReport]], bool]:
    """Those guests of which two reports in a row say that they changed by themselves.

    The first may have been taken before an operation ended and come after it. Also returns whether some
    drift still waits for its second report.
    """
    before = host.metrics.get("drift", {})
    now_seen = {s.id: [int(g.power_state), s.updated_at.isoformat()] for s, g in drifted}
    confirmed = [(s, g) for s, g in drifted if before.get(s.id) == now_seen[s.id]]
    for server, _ in confirmed:
        del now_seen[server.id]
    host.metrics = {**host.metrics, "drift": now_seen}
    return confirmed, bool(now_seen)
