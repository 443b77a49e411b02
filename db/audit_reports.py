"""What hosts report, held against the record: guests (I3) and leftovers (I4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row
from sqlmodel import Session, col, select

from db.differences import columns
from db.hosts import Host
from db.operations import BUSY
from db.servers import Server, alive
from db.sightings import UNKNOWN, HostSighting, Place, places_of
from domain.audit import Finding, Violation
from domain.states import PowerState, VmState

_PAGE = 100
"""Hosts that are looked at together, so that memory does not grow with the cloud."""
_UP = (PowerState.RUNNING, PowerState.PAUSED)
_WANTED: dict[str, tuple[PowerState, ...]] = {
    VmState.ACTIVE: (PowerState.RUNNING,),
    VmState.PAUSED: (PowerState.PAUSED,),
    VmState.SUSPENDED: (PowerState.SUSPENDED, PowerState.SHUTDOWN),
    VmState.STOPPED: (PowerState.SHUTDOWN, PowerState.CRASHED, PowerState.NOSTATE),
}
"""VM state → the power states that a guest of such a server may have."""


@dataclass(frozen=True, slots=True)
class _Stranger:
    """A guest or a leftover on a host that is not the one of its server."""

    name: str
    host: str
    at: datetime | None
    """When the host said so."""
    power_state: int = PowerState.NOSTATE


@dataclass(slots=True)
class _Seen:
    hosts: int = 0
    guests: int = 0
    strangers: list[_Stranger] = field(default_factory=list)
    residue: list[_Stranger] = field(default_factory=list)
    absent: list[Violation] = field(default_factory=list)


def audit_reports(session: Session, since: datetime) -> list[Finding]:
    """Guests and leftovers that do not fit, of the hosts that reported since then."""
    seen = _Seen()
    busy = set(session.exec(BUSY))
    for page in _pages(session, since):
        _look(session, page, busy, seen)
    places = places_of(session, sorted({s.name for s in (*seen.strangers, *seen.residue)}))
    guests = [*seen.absent, *_strange(seen.strangers, places)]
    guests += _copies(session, since, seen.strangers, places)
    return [
        Finding("I3", seen.guests, tuple(guests)),
        Finding("I4", seen.hosts, tuple(_leftovers(seen.residue, places))),
    ]


def _pages(session: Session, since: datetime) -> Iterator[list[Row[Any]]]:
    """The sightings of these hosts, by name: host, guests, residue, residue_at, reported_at."""
    query = (
        columns(
            *(HostSighting.host, HostSighting.guests, HostSighting.residue),
            *(HostSighting.residue_at, Host.reported_at),
        )
        .join(Host)
        .where(col(Host.reported_at) >= since)
        .order_by(col(HostSighting.host))
        .limit(_PAGE)
    )
    after = ""
    while page := list(
        session.connection().execute(query.where(col(HostSighting.host) > after)).all()
    ):
        yield page
        after = page[-1].host


def _look(session: Session, page: list[Row[Any]], busy: set[str], seen: _Seen) -> None:
    servers: dict[str, dict[str, tuple[str, bool]]] = defaultdict(dict)
    # a report that is older than the row says nothing about it
    query = (
        columns(
            *(Server.host, Server.id, Server.vm_state),
            col(Server.updated_at) < col(Host.reported_at),
        )
        .join(Host, col(Host.name) == Server.host)
        .where(col(Server.host).in_([row.host for row in page]), alive())
    )
    for host, server_id, vm_state, told in session.connection().execute(query).all():
        servers[host][server_id] = (vm_state, told)
    for row in page:
        own = servers[row.host]
        seen.hosts += 1
        seen.guests += len(row.guests)
        seen.strangers += [
            _Stranger(name, row.host, row.reported_at, power_state)
            for name, (power_state, _epoch) in row.guests.items()
            if name not in own
        ]
        seen.residue += [
            _Stranger(name, row.host, row.residue_at)
            for name in row.residue
            if name not in row.guests
        ]
        seen.absent += [
            Violation(f"server {server_id} on {row.host}", why)
            for server_id, (vm_state, told) in own.items()
            if told and (why := _misses(vm_state, row.guests.get(server_id)))
            if server_id not in busy
        ]


def _misses(vm_state: str, guest: list[int] | None) -> str:
    """What the guest of a server lacks; empty if it is as it should be. A guest is power state and epoch."""
    wanted = _WANTED.get(vm_state)
    if wanted is None:
        return ""
    if guest is None:
        return f"it is {vm_state}, but the host has no guest of it"
    if guest[0] in wanted:
        return ""
    return f"it is {vm_state}, but its guest is {PowerState(guest[0]).name.lower()}"


def _strange(guests: Iterable[_Stranger], places: Mapping[str, Place]) -> Iterator[Violation]:
    for guest in guests:
        place = places.get(guest.name, UNKNOWN)
        why = place.wrong_on(guest.host)
        if why and not _newer(place, guest.at):
            yield Violation(f"guest of server {guest.name} on {guest.host}", why)


def _copies(
    session: Session,
    since: datetime,
    strangers: Iterable[_Stranger],
    places: Mapping[str, Place],
) -> Iterator[Violation]:
    """Servers that run more than once: of two copies one at least is where its server is not."""
    running: dict[str, set[str]] = defaultdict(set)
    for guest in strangers:
        if guest.power_state in _UP:
            running[guest.name].add(guest.host)
    for server_id, hosts in running.items():
        home = places.get(server_id, UNKNOWN).host
        if home is not None and home not in hosts:
            query = select(HostSighting.guests).join(Host)
            query = query.where(HostSighting.host == home, col(Host.reported_at) >= since)
            at_home = (session.exec(query).first() or {}).get(server_id)
            if at_home is not None and at_home[0] in _UP:
                hosts.add(home)
        if len(hosts) > 1:
            where = ", ".join(sorted(hosts))
            yield Violation(f"server {server_id}", f"it runs more than once: on {where}")


def _leftovers(residue: Iterable[_Stranger], places: Mapping[str, Place]) -> Iterator[Violation]:
    for left in residue:
        place = places.get(left.name, UNKNOWN)
        if place.busy or _newer(place, left.at):
            continue
        why = place.wrong_on(left.host) or "it has no guest there"
        yield Violation(f"leftovers of {left.name} on {left.host}", why)


def _newer(place: Place, reported_at: datetime | None) -> bool:
    """Whether the record changed after the host said what it had."""
    if place.updated_at is None or reported_at is None:
        return False
    return place.updated_at >= reported_at
