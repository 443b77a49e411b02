"""The list of servers: its filters as SQL, its order, its pages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Row, and_, bindparam, exists, func, inspect, not_, or_
from sqlmodel import Session, col, select

from db.groups import Aggregate, AggregateHost, zones_of_hosts
from db.hosts import Host
from db.network import FixedIp, Port
from db.paging import keyset
from db.servers import Server, ServerTag, no_server
from db.session import fetch
from domain.errors import BadRequest
from domain.states import TaskState, VmState, own_status_tasks

SORT_COLUMNS: dict[str, Any] = {
    "access_ip_v4": col(Server.access_ip_v4),
    "access_ip_v6": col(Server.access_ip_v6),
    "auto_disk_config": col(Server.disk_config),
    "availability_zone": col(Server.availability_zone),
    "config_drive": col(Server.config_drive),
    "created_at": col(Server.created_at),
    "display_description": col(Server.description),
    "display_name": col(Server.name),
    "host": col(Server.host),
    "hostname": col(Server.hostname),
    "image_ref": col(Server.image_id),
    "key_name": col(Server.key_name),
    "launch_index": col(Server.launch_index),
    "launched_at": col(Server.launched_at),
    "locked": col(Server.locked),
    "locked_by": col(Server.locked_by),
    "node": col(Server.host),
    "power_state": col(Server.power_state),
    "progress": col(Server.progress),
    "project_id": col(Server.project_id),
    "task_state": col(Server.task_state),
    "terminated_at": col(Server.terminated_at),
    "updated_at": col(Server.updated_at),
    "user_id": col(Server.user_id),
    "uuid": col(Server.id),
    "vm_state": col(Server.vm_state),
}
"""The API's sort key → column."""
EXACT: dict[str, Any] = {
    "config_drive": col(Server.config_drive),
    "created_at": col(Server.created_at),
    "host": col(Server.host),
    "image": col(Server.image_id),
    "launch_index": col(Server.launch_index),
    "launched_at": col(Server.launched_at),
    "locked": col(Server.locked),
    "power_state": col(Server.power_state),
    "progress": col(Server.progress),
    "reservation_id": col(Server.reservation_id),
    "task_state": col(Server.task_state),
    "terminated_at": col(Server.terminated_at),
    "user_id": col(Server.user_id),
    "uuid": col(Server.id),
    "vm_state": col(Server.vm_state),
}
"""Filter → the column that must be equal."""
PATTERNS: dict[str, Any] = {
    "description": col(Server.description),
    "hostname": col(Server.hostname),
    "key_name": col(Server.key_name),
    "name": col(Server.name),
}
"""Filter → the column in which a pattern must be found."""
_META = frozenset(r".^$*+?()[]{}|" "\\")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFilter:
    """Which servers a list shows; all conditions must hold."""

    project_id: str | None = None
    """None is every project."""
    deleted: bool | None = False
    """None shows live and deleted ones alike."""
    exact: dict[str, Any] = field(default_factory=dict)
    """Keys of ``EXACT``."""
    patterns: dict[str, str] = field(default_factory=dict)
    """Keys of ``PATTERNS``; regular expressions in RE2's syntax, searched ignoring case."""
    statuses: tuple[tuple[VmState, TaskState | None], ...] | None = None
    """Pairs as ``domain.states.vm_states_of`` gives them; one must fit."""
    flavor: str | None = None
    node: str | None = None
    """A hypervisor's hostname."""
    addresses: tuple[str, ...] = ()
    """Texts that must each occur in an address of the server."""
    zone: str | None = None
    hosts_in_zone: tuple[str, ...] = ()
    """With ``zone``: the hosts it has. Servers on no host count by the zone they asked for."""
    changed_since: datetime | None = None
    changed_before: datetime | None = None
    tags: frozenset[str] = frozenset()
    tags_any: frozenset[str] = frozenset()
    not_tags: frozenset[str] = frozenset()
    not_tags_any: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of the list."""

    order: Sequence[tuple[str, bool]]
    """(key of SORT_COLUMNS, descending) pairs; the id is appended as the last."""
    limit: int
    marker: str | None = None
    """The id of the last server already seen."""


_UNSEEN = {
    "admin_pass_sealed", "guest_password", "image", "public_key", "scheduler_hints", "seen_by", "user_data",
}  # fmt: skip
"""Columns that no view shows, or that only some may see: documents and secrets, up to 64 KiB a row."""
_SEEN = [column for column in inspect(Server).columns if column.key not in _UNSEEN]
_PAGE = sqlalchemy.select(*_SEEN)
_PAGE_WITH_USER_DATA = _PAGE.add_columns(col(Server.user_data))
_NAMES = sqlalchemy.select(col(Server.id), col(Server.name))
_ONE = _PAGE_WITH_USER_DATA.where(col(Server.id) == bindparam("server_id"))


def read_server(session: Session, server_id: str, project_id: str | None) -> Row[Any]:
    """As ``get_server``, for who only shows it: the columns that a view has."""
    found = fetch(session, _ONE, server_id=server_id)
    server: Row[Any] | None = found[0] if found else None
    if server is None or server.deleted_at or project_id not in (None, server.project_id):
        raise no_server(server_id)
    return server


def list_servers(
    session: Session, wanted: ServerFilter, page: Page, *, user_data: bool
) -> Sequence[Row[Any]]:
    """One page of servers, with the columns that a view has; BadRequest for an unknown marker. Without
    ``user_data`` that column is not among them."""
    columns = _PAGE_WITH_USER_DATA if user_data else _PAGE
    return fetch(session, _page(session, columns, wanted, page))


def list_names(session: Session, wanted: ServerFilter, page: Page) -> Sequence[Row[Any]]:
    """The same page as (id, name) rows."""
    return fetch(session, _page(session, _NAMES, wanted, page))


def _page(session: Session, statement: Any, wanted: ServerFilter, page: Page) -> Any:
    order = [(SORT_COLUMNS[key], descending) for key, descending in page.order]
    order.append((col(Server.id), order[-1][1] if order else True))
    after = None
    if page.marker is not None:
        columns = [column for column, _ in order]
        mine = _in_project(wanted)
        after = session.execute(select(*columns).where(Server.id == page.marker, *mine)).first()
        if after is None:
            raise BadRequest(f"marker [{page.marker}] not found")
    return keyset(statement.where(*_conditions(wanted)), order, after, page.limit)


def _in_project(wanted: ServerFilter) -> list[ColumnElement[bool]]:
    return [] if wanted.project_id is None else [col(Server.project_id) == wanted.project_id]


def _conditions(wanted: ServerFilter) -> list[ColumnElement[bool]]:
    found = _in_project(wanted)
    if wanted.deleted is not None:
        gone = col(Server.deleted_at)
        found.append(gone.is_not(None) if wanted.deleted else gone.is_(None))
    found += [EXACT[key] == value for key, value in wanted.exact.items()]
    found += [_matches(PATTERNS[key], pattern) for key, pattern in wanted.patterns.items()]
    if wanted.statuses is not None:
        found.append(or_(*(_has_status(vm, task) for vm, task in wanted.statuses)))
    if wanted.flavor is not None:
        found.append(col(Server.flavor)["id"].as_string() == wanted.flavor)
    if wanted.node is not None:
        hosts = select(Host.name).where(Host.hypervisor_hostname == wanted.node)
        found.append(col(Server.host).in_(hosts))
    if wanted.zone is not None:
        asked = col(Server.availability_zone)
        there = or_(asked == wanted.zone, asked.startswith(f"{wanted.zone}:", autoescape=True))
        waiting = and_(col(Server.host).is_(None), there)
        found.append(or_(col(Server.host).in_(wanted.hosts_in_zone), waiting))
    found += [_has_address(text) for text in wanted.addresses]
    if wanted.changed_since is not None:
        found.append(col(Server.updated_at) >= wanted.changed_since)
    if wanted.changed_before is not None:
        found.append(col(Server.updated_at) <= wanted.changed_before)
    return found + _tag_conditions(wanted)


def _matches(column: Any, pattern: str) -> ColumnElement[bool]:
    # Most are a plain text, or one from its beginning to its end, which any database finds faster.
    whole = pattern.startswith("^") and pattern.endswith("$")
    text = pattern[1:-1] if whole else pattern
    plain = _META.isdisjoint(text) and text.isascii()  # SQLite knows the case of no other letters
    found: ColumnElement[bool]
    if plain and whole:
        found = func.lower(column) == func.lower(text)
    elif plain:
        found = column.icontains(text, autoescape=True)
    else:
        found = column.regexp_match(f"(?i){pattern}")
    return found


def _has_status(vm_state: VmState, task_state: TaskState | None) -> ColumnElement[bool]:
    task = col(Server.task_state)
    if task_state is not None:
        fits = task == task_state
    elif own := own_status_tasks(vm_state):
        fits = or_(task.is_(None), task.not_in(own))
    else:
        return col(Server.vm_state) == vm_state
    return and_(col(Server.vm_state) == vm_state, fits)


def _has_address(text: str) -> ColumnElement[bool]:
    owners = (
        select(Port.device_id)
        .join(FixedIp, col(FixedIp.port_id) == Port.id)
        .where(col(FixedIp.ip).contains(text, autoescape=True))
    )
    return col(Server.id).in_(owners)


def _tag_conditions(wanted: ServerFilter) -> list[ColumnElement[bool]]:
    def has(tags: Sequence[str]) -> ColumnElement[bool]:
        return exists().where(col(ServerTag.server_id) == Server.id, col(ServerTag.tag).in_(tags))

    found = [has([tag]) for tag in sorted(wanted.tags)]
    if wanted.tags_any:
        found.append(has(sorted(wanted.tags_any)))
    if wanted.not_tags:
        found.append(not_(and_(*(has([tag]) for tag in sorted(wanted.not_tags)))))
    if wanted.not_tags_any:
        found.append(not_(has(sorted(wanted.not_tags_any))))
    return found


@dataclass(frozen=True, slots=True)
class HostOfServers:
    """What the view of a server tells of its host."""

    hypervisor_hostname: str
    forced_down: bool
    disabled: bool
    reported_at: datetime | None
    zone: str | None
    """An aggregate's, else its own; None leaves it to the cloud's default."""


_HOSTS = (
    sqlalchemy.select(
        col(Host.name), col(Host.hypervisor_hostname), col(Host.forced_down), col(Host.disabled),
        col(Host.reported_at), col(Host.availability_zone), col(Aggregate.metadata_),
    )
    .outerjoin(AggregateHost, col(AggregateHost.host) == col(Host.name))
    .outerjoin(Aggregate, col(Aggregate.id) == col(AggregateHost.aggregate_id))
    .where(col(Host.name).in_(bindparam("names", expanding=True)))
)  # fmt: skip


def hosts_named(session: Session, names: Collection[str]) -> dict[str, HostOfServers]:
    """Name → host, of those that exist."""
    found: dict[str, HostOfServers] = {}
    for host in fetch(session, _HOSTS, names=list(names)):
        known = found.get(host.name)
        zone = (host.metadata_ or {}).get("availability_zone")
        if known is None or zone:
            found[host.name] = HostOfServers(
                hypervisor_hostname=host.hypervisor_hostname,
                forced_down=host.forced_down,
                disabled=host.disabled,
                reported_at=host.reported_at,
                zone=zone or host.availability_zone,
            )
    return found


def hosts_in_zone(session: Session, zone: str, default: str) -> tuple[str, ...]:
    """The hosts of a zone; ``default`` is the zone of hosts that are given none."""
    return tuple(host for host, own in zones_of_hosts(session, default).items() if own == zone)
