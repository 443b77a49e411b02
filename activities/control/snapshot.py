"""What the scheduler is shown: the state of every host, and one server's request, read in a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Row
from sqlmodel import Session, col

from db.groups import ServerGroup, hosts_of_aggregates, list_aggregates
from db.host_changes import AGGREGATES, read_changes
from db.hosts import Host, group_members, hosts_of_servers
from db.operations import Operation
from db.servers import Server
from domain.amounts import amounts
from domain.usage import NOTHING_USED, Usage
from runtime.settings import Settings
from scheduler.model import Aggregate, Group, HostFacts, HostState, Request

_HINTED_SERVERS = 100
"""Server ids of one hint that are looked up; the rest is ignored."""


class _Own(NamedTuple):
    """What a host has of its own, where its aggregates and the cloud may say something else."""

    zone: str | None
    cpu: float | None
    ram: float | None
    disk: float | None
    """Allocation ratios."""


class Snapshots:
    """Reads host states, keeping between decisions what has not changed since.

    Every decision sees what is committed, and reads no more than that: one row for each host that changed
    since the last one, and one for each host that is not up. Not for several threads at once; placement
    decides one at a time anyway. Not within a transaction that has changed hosts or claims itself: what it
    may yet roll back would be taken for committed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._losses = 0
        self.forget()

    def forget(self) -> None:
        """Begin anew: the database may have lost what was read of it."""
        self._version = -1
        self._known: dict[str, tuple[_Own, HostFacts, Usage]] = {}
        self._down: dict[str, str] = {}
        self._states: dict[str, HostState] = {}
        """By name, in the order of names."""
        self._aggregates: dict[str, tuple[Aggregate, ...]] = {}
        """host → the aggregates it is in"""

    def hosts(self, session: Session, now: datetime, losses: int = 0) -> list[HostState]:
        """Every host that ever reported, by name. With another number of ``losses`` (of connections) than
        before, nothing that was read before counts."""
        if losses != self._losses:
            self.forget()
            self._losses = losses
        try:
            return self._hosts(session, now)
        except BaseException:
            self.forget()  # it may have come half way
            raise

    def _hosts(self, session: Session, now: datetime) -> list[HostState]:
        changes = read_changes(session, self._version)
        down = _down(session, now, self._settings.host_silent_after_s)
        touched = {name for name, _ in down.items() ^ self._down.items()}
        touched.update(self._take_in(session, changes))
        self._down = down
        new = False
        for name in touched:
            if name not in self._known:
                self._states.pop(name, None)
                continue
            _, facts, usage = self._known[name]
            new = new or name not in self._states
            self._states[name] = HostState(facts, usage, down.get(name))
        if new:
            self._states = dict(sorted(self._states.items()))
        return list(self._states.values())

    def _take_in(self, session: Session, changes: Sequence[Row[Any]]) -> set[str]:
        """Returns the hosts that are not as they were."""
        news = {row.changed: row for row in changes}
        touched = set(news)
        if news.pop(AGGREGATES, None):
            regrouped = self._read_aggregates(session) & self._known.keys()
            for name in regrouped - news.keys():
                own, facts, usage = self._known[name]
                self._known[name] = (own, self._group(facts, own), usage)
            touched |= regrouped
        for name, row in news.items():
            if row.name is None:
                self._known.pop(name, None)
            else:
                own = _own(row)
                self._known[name] = (own, self._group(_facts(row), own), _usage(row))
        self._version = max((row.version for row in changes), default=self._version)
        return touched

    def _group(self, facts: HostFacts, own: _Own) -> HostFacts:
        return _grouped(facts, own, self._aggregates.get(facts.name, ()), self._settings)

    def _read_aggregates(self, session: Session) -> set[str]:
        """Returns the hosts whose aggregates are not as they were."""
        rows = list_aggregates(session)
        known = {a.id: Aggregate(a.id, a.name, a.metadata_) for a in rows if a.id is not None}
        of_host: dict[str, tuple[Aggregate, ...]] = {}
        same: dict[tuple[int, ...], tuple[Aggregate, ...]] = {}
        """Hosts in the same aggregates share one tuple, by which filters know that they are alike."""
        for number, hosts in hosts_of_aggregates(session, known).items():
            for host in hosts:
                them = (*of_host.get(host, ()), known[number])
                of_host[host] = same.setdefault(tuple(a.id for a in them), them)
        before, self._aggregates = self._aggregates, of_host
        return {h for h in before.keys() | of_host.keys() if before.get(h) != of_host.get(h)}


def _own(row: Row[Any]) -> _Own:
    return _Own(
        row.availability_zone,
        row.cpu_allocation_ratio,
        row.ram_allocation_ratio,
        row.disk_allocation_ratio,
    )


def _usage(row: Row[Any]) -> Usage:
    if row.used_servers is None:
        return NOTHING_USED
    return Usage(
        row.used_vcpus, row.used_ram_mb, row.used_disk_gb, row.used_servers, row.used_building
    )


def host_states(session: Session, settings: Settings, now: datetime) -> list[HostState]:
    """Every host as the scheduler sees it, by name; read anew."""
    return Snapshots(settings).hosts(session, now)


@lru_cache(maxsize=1024)
def _traits(names: tuple[str, ...]) -> frozenset[str]:
    """One object for all hosts of a kind: it is looked up faster, and there may be ten thousand."""
    return frozenset(names)


def _facts(row: Row[Any]) -> HostFacts:
    """What the host says; ``_group`` adds what the cloud makes of it."""
    return HostFacts(
        name=row.name,
        zone="",
        vcpus=row.vcpus,
        ram_mb=row.ram_mb,
        disk_gb=row.disk_gb,
        hypervisor_type=row.hypervisor_type,
        hypervisor_version=row.hypervisor_version,
        hypervisor_hostname=row.hypervisor_hostname,
        cpu_arch=row.cpu_arch,
        cpu_model=row.cpu_model,
        host_ip=row.host_ip,
        capabilities=_traits(tuple(row.capabilities)),
    )


def _grouped(
    facts: HostFacts, own: _Own, aggregates: tuple[Aggregate, ...], settings: Settings
) -> HostFacts:
    """The same host in these aggregates, with the zone and the limits that follow."""

    def limit(key: str) -> float:
        return _least(aggregates, key, getattr(settings, key))

    zones = sorted(a.metadata["availability_zone"] for a in aggregates if _zone(a))
    ram_mb = max(0, facts.ram_mb - settings.reserved_host_ram_mb)
    return replace(
        facts,
        zone=next(iter(zones), own.zone or settings.default_availability_zone),
        vcpus_limit=int(facts.vcpus * (own.cpu or limit("cpu_allocation_ratio"))),
        ram_mb_limit=int(ram_mb * (own.ram or limit("ram_allocation_ratio"))),
        disk_gb_limit=int(facts.disk_gb * (own.disk or limit("disk_allocation_ratio"))),
        servers_limit=int(limit("max_instances_per_host")),
        aggregates=aggregates,
    )


def _zone(aggregate: Aggregate) -> str | None:
    return aggregate.metadata.get("availability_zone")


def _least(aggregates: Iterable[Aggregate], key: str, default: float) -> float:
    """The smallest number that an aggregate's metadata gives for the key, as Nova has it."""
    numbers = []
    for aggregate in aggregates:
        try:
            number = float(aggregate.metadata[key])
        except (KeyError, ValueError):
            continue  # metadata is free text; what is no number says nothing about numbers
        if 0 < number < float("inf"):
            numbers.append(number)
    return min(numbers, default=default)


_DOWN = sa.select(
    col(Host.name),
    col(Host.disabled),
    col(Host.disabled_reason),
    col(Host.forced_down),
    col(Host.reported_at),
).where(
    sa.or_(
        col(Host.disabled),
        col(Host.forced_down),
        col(Host.reported_at).is_(None),
        col(Host.reported_at) < sa.bindparam("silent_since"),
    )
)


def _down(session: Session, now: datetime, silent_after_s: float) -> dict[str, str]:
    """host → why it takes no server; only hosts that take none."""
    asked = {"silent_since": now - timedelta(seconds=silent_after_s)}
    return {
        name: _why_down(disabled, reason, forced, reported_at, now)
        for name, disabled, reason, forced, reported_at in session.connection().execute(
            _DOWN, asked
        )
    }


def _why_down(
    disabled: bool, reason: str | None, forced: bool, reported_at: datetime | None, now: datetime
) -> str:
    if disabled:
        return f"disabled ({reason})" if reason else "disabled"
    if forced:
        return "forced down"
    if reported_at is None:
        return "silent since ever"
    return f"silent for {(now - reported_at).total_seconds():.0f} s"


def build_request(
    session: Session, server: Server, operation: Operation, passed_over: Iterable[str]
) -> Request:
    """What this operation asks for: flavor, image, hints, zone, group and the hosts it has failed on."""
    zone, host, node = _where(server, operation)
    specs: dict[str, str] = server.flavor.get("extra_specs") or {}
    hints: dict[str, Any] = server.scheduler_hints
    vcpus, ram_mb, disk_gb = amounts(server.flavor, server.image)
    same = _ids(hints.get("same_host"))
    different = _ids(hints.get("different_host"))
    project = server.project_id
    return Request(
        server_id=server.id,
        project_id=project,
        vcpus=vcpus,
        ram_mb=ram_mb,
        disk_gb=disk_gb,
        zone=zone,
        host=host,
        node=node,
        forced=bool(server.availability_zone and ":" in server.availability_zone),
        extra_specs=specs,
        image_properties=server.image.get("properties") or {},
        group=_group(session, server),
        same_hosts=frozenset(hosts_of_servers(session, same, project)) if same else None,
        different_hosts=(
            frozenset(hosts_of_servers(session, different, project)) if different else None
        ),
        passed_over=frozenset(passed_over),
        hints=hints,
    )


def _where(server: Server, operation: Operation) -> tuple[str | None, str | None, str | None]:
    """(zone, host, hypervisor host name), of the zone's long form ``zone:host:node`` or the operation."""
    zone, host, node = [*(server.availability_zone or "").split(":", 2), "", ""][:3]
    asked = operation.input
    return (
        zone or None,
        host or asked.get("host") or None,
        node or asked.get("hypervisor_hostname") or None,
    )


def _ids(hint: object) -> list[str]:
    """A hint's server ids: a list, or one alone."""
    given = hint if isinstance(hint, list) else [hint] if hint else []
    return [item for item in given if isinstance(item, str)][:_HINTED_SERVERS]


def _group(session: Session, server: Server) -> Group | None:
    row = session.get(ServerGroup, server.group_id) if server.group_id else None
    if row is None:
        return None  # a group that was deleted meanwhile asks for nothing
    return Group(
        id=row.id,
        policy=row.policy,
        max_server_per_host=row.max_server_per_host,
        members=group_members(session, row.id, but=server.id),
    )
