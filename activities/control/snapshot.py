"""What the scheduler is shown: the state of every host, and one server's request, read in a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from db.groups import Aggregate as AggregateRow
from db.groups import AggregateHost, ServerGroup
from db.hosts import Host, UsageRow, group_members, hosts_of_servers, usage_of, usage_rows
from db.operations import Operation
from db.servers import Server
from domain.amounts import amounts
from runtime.settings import Settings
from scheduler.model import Aggregate, Group, HostFacts, HostState, Request

_HINTED_SERVERS = 100
"""Server ids of one hint that are looked up; the rest is ignored."""

Memberships = list[tuple[str, int]]
_Seen = tuple[Any, UsageRow | None, str | None]
"""updated_at, usage, why it is down"""


class Snapshots:
    """Reads host states, keeping between decisions what changes only with a report or an operator.

    A row's ``updated_at`` says whether its facts are still the ones in hand, so every decision sees what is
    committed, while 1,000 unchanged hosts cost two columns each. Not for several threads at once;
    placement decides one at a time anyway.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._facts: dict[str, tuple[Any, HostFacts]] = {}
        """name → (the row's ``updated_at``, facts)"""
        self._states: dict[str, tuple[_Seen, HostState]] = {}
        """name → (what the state was made of, state)"""
        self._aggregates: tuple[list[Any], Memberships] = ([], [])

    def hosts(self, session: Session, now: datetime) -> list[HostState]:
        """Every host that ever reported, by name."""
        self._refresh_aggregates(session)
        seen = _stamps(session)
        known = self._facts
        stale = [n for n, stamp in seen if n not in known or known[n][0] != stamp]
        if stale:
            self._read_facts(session, dict(seen), stale)
        used = usage_rows(session)
        down = _down(session, now, self._settings.host_silent_after_s)
        states: dict[str, tuple[_Seen, HostState]] = {}
        for name, stamp in seen:
            made_of = (stamp, used.get(name), down.get(name))
            entry = self._states.get(name)
            if entry is None or entry[0] != made_of:
                state = HostState(known[name][1], usage_of(made_of[1]), made_of[2])
                entry = (made_of, state)
            states[name] = entry
        self._states = states  # without the hosts that are gone
        return [state for _, state in states.values()]

    def _refresh_aggregates(self, session: Session) -> None:
        connection = session.connection()
        rows: list[Any] = [
            tuple(row)
            for row in connection.execute(
                sa.select(
                    col(AggregateRow.id), col(AggregateRow.name), col(AggregateRow.metadata_)
                ).order_by(col(AggregateRow.id))
            )
        ]
        members: Memberships = []
        if rows:
            query = sa.select(col(AggregateHost.host), col(AggregateHost.aggregate_id))
            members = [
                (host, number)
                for host, number in connection.execute(
                    query.order_by(col(AggregateHost.aggregate_id), col(AggregateHost.host))
                )
            ]
        if (rows, members) != self._aggregates:
            self._facts.clear()
            self._states.clear()
            self._aggregates = (rows, members)

    def _read_facts(self, session: Session, stamps: Mapping[str, Any], names: list[str]) -> None:
        rows, members = self._aggregates
        aggregates = {row[0]: Aggregate(*row) for row in rows}
        of_host: dict[str, list[Aggregate]] = {}
        for host, number in members:
            of_host.setdefault(host, []).append(aggregates[number])
        columns = Host.__table__.columns  # type: ignore[attr-defined]  # SQLModel does not declare it
        query = sa.select(*columns)
        if len(names) <= 500:  # below every database's limit of parameters; else all is as quick
            query = query.where(col(Host.name).in_(names))
        for row in session.connection().execute(query):
            facts = _facts(row, tuple(of_host.get(row.name, ())), self._settings)
            self._facts[row.name] = (stamps.get(row.name), facts)


def _stamps(session: Session) -> list[tuple[str, Any]]:
    """(name, updated_at) of every host; the instant as the driver hands it over, only to be compared."""
    stamp = sa.type_coerce(col(Host.updated_at), sa.types.NullType())
    query = sa.select(col(Host.name), stamp).order_by(col(Host.name))
    return [(name, stamp) for name, stamp in session.connection().execute(query).all()]


def host_states(session: Session, settings: Settings, now: datetime) -> list[HostState]:
    """Every host as the scheduler sees it, by name; read anew."""
    return Snapshots(settings).hosts(session, now)


def _facts(row: Any, aggregates: tuple[Aggregate, ...], settings: Settings) -> HostFacts:
    cpu = row.cpu_allocation_ratio or _least(
        aggregates, "cpu_allocation_ratio", settings.cpu_allocation_ratio
    )
    ram = row.ram_allocation_ratio or _least(
        aggregates, "ram_allocation_ratio", settings.ram_allocation_ratio
    )
    disk = row.disk_allocation_ratio or _least(
        aggregates, "disk_allocation_ratio", settings.disk_allocation_ratio
    )
    zones = sorted(a.metadata["availability_zone"] for a in aggregates if _zone(a))
    return HostFacts(
        name=row.name,
        zone=next(iter(zones), row.availability_zone or settings.default_availability_zone),
        vcpus=row.vcpus,
        ram_mb=row.ram_mb,
        disk_gb=row.disk_gb,
        vcpus_limit=int(row.vcpus * cpu),
        ram_mb_limit=int(max(0, row.ram_mb - settings.reserved_host_ram_mb) * ram),
        disk_gb_limit=int(row.disk_gb * disk),
        servers_limit=int(
            _least(aggregates, "max_instances_per_host", settings.max_instances_per_host)
        ),
        hypervisor_type=row.hypervisor_type,
        hypervisor_version=row.hypervisor_version,
        hypervisor_hostname=row.hypervisor_hostname,
        cpu_arch=row.cpu_arch,
        cpu_model=row.cpu_model,
        host_ip=row.host_ip,
        capabilities=frozenset(row.capabilities),
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


def _down(session: Session, now: datetime, silent_after_s: float) -> dict[str, str]:
    """host → why it takes no server; only hosts that take none."""
    query = sa.select(
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
            col(Host.reported_at) < now - timedelta(seconds=silent_after_s),
        )
    )
    return {
        name: _why_down(disabled, reason, forced, reported_at, now)
        for name, disabled, reason, forced, reported_at in session.connection().execute(query)
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
