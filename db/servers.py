"""Servers: the row of record, with its tags and faults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Index, bindparam, func, text
from sqlmodel import Field, Session, SQLModel, col, delete, select

from db.columns import id_column, instant, json_column, stamped
from db.session import fetch
from domain.errors import Conflict, NotFound
from domain.states import VmState


def _only(condition: str) -> dict[str, Any]:
    """Options of an index that has no other rows."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


_LIVE = _only("deleted_at IS NULL")
"""The rows of deleted servers stay, and one day they are the most."""
_SIZES = ("vcpus", "ram_mb", "disk_gb")
MISCOUNTED = {
    # as floating-point numbers: one in JSON may have been written as 1.0
    "sqlite": "deleted_at IS NULL AND ("
    + " OR ".join(f"{n} != CAST(json_extract(flavor, '$.{n}') AS REAL)" for n in _SIZES)
    + ")",
    "postgresql": "deleted_at IS NULL AND ("
    + " OR ".join(f"{n} <> (flavor ->> '{n}')::float8" for n in _SIZES)
    + ")",
}
"""Dialect → in SQL, of a server: what a quota counts is not what its flavor says. An index has those alone, so
that the database looks at a server when it is written, and the audit at none."""
_EDITABLE = (VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED)


class Server(SQLModel, table=True):
    """An instance. The row stays after delete, marked by ``deleted_at``."""

    __tablename__ = "server"
    __table_args__ = (
        # Lists, newest first, of everything or of one project. What comes behind the order is only read
        # there: a name is looked for, and a project's usage summed, without touching the rows. (SQLite
        # looks at deleted_at even where the index has no other than NULL.)
        Index("server_live", "created_at", "id", "name", "deleted_at", **_LIVE),
        Index(
            "server_live_in_project",
            *("project_id", "created_at", "id", "name", "vcpus", "ram_mb", "deleted_at"),
            **_LIVE,
        ),
        # The same by status. A project has its own: SQLite takes the index with the most columns that
        # must be equal, and the servers of one project are not to be looked for among all that are ACTIVE.
        Index("server_live_in_state", "vm_state", "created_at", "id", **_LIVE),
        Index(
            "server_live_in_project_state", "project_id", "vm_state", "created_at", "id", **_LIVE
        ),
        Index("server_on_host", "host", "created_at", "id"),
        Index("server_changed", "updated_at"),
        # For the reconcilers and the audit. Claims, ports and operations are held against the first two, from
        # end to end and without touching the rows; the others have few servers or none.
        Index("server_share", *("id", "host", "vcpus", "ram_mb", "disk_gb", "deleted_at"), **_LIVE),
        Index("server_place", "id", "project_id", "host", "deleted_at"),
        Index("server_in_task", "task_state", **_only("task_state IS NOT NULL")),
        Index("server_deleted", "deleted_at", **_only("deleted_at IS NOT NULL")),
        Index(
            "server_miscounted",
            *("project_id", "id"),
            sqlite_where=text(MISCOUNTED["sqlite"]),
            postgresql_where=text(MISCOUNTED["postgresql"]),
        ),
        Index("server_in_group", "group_id", "project_id", **_only("group_id IS NOT NULL")),
        Index("server_from_image", "image_id", "project_id", **_only("image_id IS NOT NULL")),
    )
    id: str = id_column()
    project_id: str = Field(max_length=36)
    user_id: str = Field(max_length=36)
    name: str = Field(max_length=255)
    hostname: str = Field(default="", max_length=255)
    description: str | None = None
    vm_state: str = Field(default="building", max_length=24)
    task_state: str | None = Field(default=None, max_length=24)
    power_state: int = 0
    progress: int = 0
    epoch: int = 0
    """The newest fencing epoch handed out; grows with each claim and with delete."""
    host: str | None = Field(default=None, max_length=255)
    seen_by: str | None = Field(default=None, max_length=36)
    """Epoch of the host worker that last knew the guest to be as the record says. A guest that a later
    worker finds down went down with its host."""
    power_policy: str | None = Field(default=None, max_length=16)
    """``domain.drift.PowerPolicy``: what is done when the guest changes by itself; None is as the cloud has it."""
    availability_zone: str | None = Field(default=None, max_length=255)
    """As asked; None lets the scheduler choose."""
    flavor: dict[str, Any] = json_column()
    """A copy at create time: id (flavor_id), name, vcpus, ram_mb, disk_gb, ephemeral_gb, swap_mb, extra_specs."""
    vcpus: int = 0
    """As in ``flavor``, again as numbers, so that a quota is one sum on every database. Set at create."""
    ram_mb: int = 0
    disk_gb: int = 0
    image_id: str | None = Field(default=None, max_length=36)
    image: dict[str, Any] = json_column()
    """A copy at create time: checksum (sha512), disk_format, size_bytes, min_disk, min_ram, properties."""
    key_name: str | None = Field(default=None, max_length=255)
    public_key: str | None = None
    user_data: str | None = None
    """base64, as sent."""
    metadata_: dict[str, str] = json_column()
    config_drive: bool = False
    access_ip_v4: str = ""
    access_ip_v6: str = ""
    locked: bool = False
    locked_by: str | None = Field(default=None, max_length=8)
    """``owner`` or ``admin``."""
    locked_reason: str | None = None
    disk_config: str = Field(default="MANUAL", max_length=8)
    scheduler_hints: dict[str, Any] = json_column()
    group_id: str | None = Field(default=None, max_length=36)
    reservation_id: str = Field(default="", max_length=64)
    launch_index: int = 0
    admin_pass_sealed: str | None = None
    guest_password: str | None = None
    """What the guest posted as its password: encrypted by the guest with the user's own public key."""
    created_at: datetime = stamped()
    updated_at: datetime = stamped()
    launched_at: datetime | None = instant()
    terminated_at: datetime | None = instant()
    deleted_at: datetime | None = instant()


class ServerTag(SQLModel, table=True):
    """One tag of one server."""

    __tablename__ = "server_tag"
    server_id: str = Field(
        foreign_key="server.id", max_length=36, primary_key=True, ondelete="CASCADE"
    )
    tag: str = Field(max_length=60, primary_key=True)


class ServerFault(SQLModel, table=True):
    """Why a server is in ERROR: the newest row counts."""

    __tablename__ = "server_fault"
    id: int | None = Field(default=None, primary_key=True)
    server_id: str = Field(foreign_key="server.id", max_length=36, index=True)
    code: int = 500
    message: str = Field(max_length=255)
    details: str | None = None
    created_at: datetime = stamped()


def alive() -> Any:
    """In a query on servers: it is not deleted."""
    return col(Server.deleted_at).is_(None)


def get_server(
    session: Session, server_id: str, project_id: str | None, *, deleted: bool = False
) -> Server:
    """The server with this id, in this project (None: in any); NotFound, in Nova's words.
    ``deleted`` also finds those that are gone."""
    server = session.get(Server, server_id)
    foreign = server is not None and project_id is not None and server.project_id != project_id
    if server is None or foreign or (server.deleted_at is not None and not deleted):
        raise no_server(server_id)
    return server


def no_server(server_id: str) -> NotFound:
    """There is no such server, in Nova's words."""
    return NotFound(f"Instance {server_id} could not be found.")


def count_by_state(session: Session) -> dict[str, int]:
    """VM state → servers in it, in all projects; deleted ones are left out."""
    query = (
        select(Server.vm_state, func.count())
        .where(col(Server.deleted_at).is_(None))
        .group_by(Server.vm_state)
    )
    return dict(session.exec(query).all())


_TAGS = (
    select(ServerTag.server_id, ServerTag.tag)
    .where(col(ServerTag.server_id).in_(bindparam("server_ids", expanding=True)))
    .order_by(col(ServerTag.tag))
)


def tags_of(session: Session, server_ids: Collection[str]) -> dict[str, list[str]]:
    """Server id → its tags in order; servers without tags are left out."""
    tags: dict[str, list[str]] = defaultdict(list)
    for server_id, tag in fetch(session, _TAGS, server_ids=list(server_ids)):
        tags[server_id].append(tag)
    return tags


def replace_tags(session: Session, server_id: str, tags: Iterable[str]) -> None:
    """Make these the server's only tags."""
    session.exec(delete(ServerTag).where(col(ServerTag.server_id) == server_id))
    session.add_all(ServerTag(server_id=server_id, tag=tag) for tag in sorted(set(tags)))
    session.flush()


def newest_faults(session: Session, server_ids: Collection[str]) -> dict[str, ServerFault]:
    """Server id → its newest fault."""
    newest = (
        select(func.max(ServerFault.id))
        .where(col(ServerFault.server_id).in_(server_ids))
        .group_by(col(ServerFault.server_id))
    )
    found = session.exec(select(ServerFault).where(col(ServerFault.id).in_(newest)))
    return {fault.server_id: fault for fault in found}


def check_editable(server: Server, what: str) -> None:
    """Raise Conflict, worded as Nova does, unless the server is in a state in which its metadata and
    tags may change: built, and not in ERROR."""
    if server.vm_state not in _EDITABLE:
        raise Conflict(
            f"Cannot '{what}' instance {server.id} while it is in vm_state {server.vm_state}"
        )
