"""Flavors, their extra specs and their access list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, UniqueConstraint, bindparam, or_
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import id_column, json_column, stamped
from db.paging import keyset
from db.session import insert_unique
from domain.errors import BadRequest, Conflict, NotFound


class Flavor(SQLModel, table=True):
    """A size of server."""

    __tablename__ = "flavor"
    id: str = id_column()
    """The row's own id; servers keep a copy of the flavor, not a reference."""
    flavor_id: str = Field(max_length=255, unique=True)
    """What the API calls the id."""
    name: str = Field(max_length=255, unique=True)
    description: str | None = None
    vcpus: int
    ram_mb: int
    disk_gb: int
    ephemeral_gb: int = 0
    swap_mb: int = 0
    rxtx_factor: float = 1.0
    is_public: bool = True
    disabled: bool = False
    extra_specs: dict[str, str] = json_column()
    created_at: datetime = stamped()


class FlavorAccess(SQLModel, table=True):
    """A project that may use a non-public flavor."""

    __tablename__ = "flavor_access"
    __table_args__ = (UniqueConstraint("flavor_row_id", "project_id"),)
    id: str = id_column()
    flavor_row_id: str = Field(foreign_key="flavor.id", max_length=36, ondelete="CASCADE")
    project_id: str = Field(max_length=36)


DEFAULT_FLAVORS = (
    # flavor_id, name, vcpus, ram in MB, disk in GB
    ("tiny", "tiny", 1, 96, 1),
    ("0", "m1.nano", 1, 128, 1),
    ("1", "m1.tiny", 1, 512, 1),
    ("2", "m1.small", 1, 2048, 20),
    ("3", "m1.medium", 2, 4096, 40),
    ("4", "m1.large", 4, 8192, 80),
)
"""What a new cloud starts with; ``tiny`` suits a small guest without hardware acceleration."""

SORT_COLUMNS: dict[str, Any] = {
    "created_at": col(Flavor.created_at),
    "description": col(Flavor.description),
    "disabled": col(Flavor.disabled),
    "ephemeral_gb": col(Flavor.ephemeral_gb),
    "flavorid": col(Flavor.flavor_id),
    "id": col(Flavor.id),
    "is_public": col(Flavor.is_public),
    "memory_mb": col(Flavor.ram_mb),
    "name": col(Flavor.name),
    "root_gb": col(Flavor.disk_gb),
    "rxtx_factor": col(Flavor.rxtx_factor),
    "swap": col(Flavor.swap_mb),
    "vcpus": col(Flavor.vcpus),
}
"""The API's sort key → column."""


def ensure_default_flavors(session: Session) -> None:
    """Make the default flavors if there is no flavor at all; a deleted one does not come back while
    another is left."""
    if session.exec(select(Flavor.id).limit(1)).first() is not None:
        return
    for flavor_id, name, vcpus, ram_mb, disk_gb in DEFAULT_FLAVORS:
        session.add(
            Flavor(flavor_id=flavor_id, name=name, vcpus=vcpus, ram_mb=ram_mb, disk_gb=disk_gb)
        )
    session.flush()


def _usable(statement: Any, project_id: str | BindParameter[str]) -> Any:
    allowed = select(FlavorAccess.flavor_row_id).where(FlavorAccess.project_id == project_id)
    return statement.where(or_(col(Flavor.is_public), col(Flavor.id).in_(allowed)))


_ONE = select(Flavor).where(Flavor.flavor_id == bindparam("ref"))
_ONE_USABLE = _usable(_ONE, bindparam("project_id"))


def get_flavor_for(session: Session, ref: str, project_id: str, is_admin: bool) -> Flavor:
    """The flavor with this API id, if the project may use it; NotFound otherwise."""
    statement = _ONE if is_admin else _ONE_USABLE
    flavor: Flavor | None = session.exec(
        statement, params={"ref": ref, "project_id": project_id}
    ).first()
    if flavor is None:
        raise NotFound(f"Flavor {ref} could not be found.")
    return flavor


def add_flavor(session: Session, flavor: Flavor) -> None:
    """Add a new flavor; Conflict when its API id or its name is taken."""
    if session.exec(select(Flavor).where(Flavor.flavor_id == flavor.flavor_id)).first():
        raise Conflict(f"Flavor with ID {flavor.flavor_id} already exists.")
    insert_unique(session, flavor, f"Flavor with name {flavor.name} already exists.")


@dataclass(frozen=True, slots=True)
class FlavorFilter:
    """Which flavors a list shows, to whom."""

    project_id: str
    is_admin: bool
    """Others see the enabled flavors they may use, whatever ``is_public`` says."""
    is_public: bool | None = True
    """None asks for both kinds; True also shows an admin the non-public ones open to their own
    project, as in Nova."""
    min_ram_mb: int | None = None
    min_disk_gb: int | None = None


def list_flavors(
    session: Session,
    wanted: FlavorFilter,
    order: Sequence[tuple[str, bool]],
    limit: int,
    marker: str | None,
) -> list[Flavor]:
    """A page of flavors behind the flavor ``marker`` (an API id; BadRequest when there is none).

    ``order`` is (key of SORT_COLUMNS, descending) pairs.
    """
    columns = [(SORT_COLUMNS[key], descending) for key, descending in order]
    columns.append((col(Flavor.id), False))
    after = None
    if marker is not None:
        last = session.exec(select(Flavor).where(Flavor.flavor_id == marker)).first()
        if last is None:
            raise BadRequest(f"marker [{marker}] not found")
        after = [getattr(last, column.key) for column, _ in columns]
    return list(session.scalars(keyset(_filtered(wanted), columns, after, limit)))


def _filtered(wanted: FlavorFilter) -> Any:
    statement: Any = select(Flavor)
    if not wanted.is_admin:
        statement = statement.where(col(Flavor.disabled).is_(False))
    if not wanted.is_admin or wanted.is_public:
        statement = _usable(statement, wanted.project_id)
    elif wanted.is_public is False:
        statement = statement.where(col(Flavor.is_public).is_(False))
    if wanted.min_ram_mb is not None:
        statement = statement.where(Flavor.ram_mb >= wanted.min_ram_mb)
    if wanted.min_disk_gb is not None:
        statement = statement.where(Flavor.disk_gb >= wanted.min_disk_gb)
    return statement


def access_of(session: Session, flavor: Flavor) -> list[str]:
    """The projects that may use a non-public flavor, in order of their id."""
    return list(
        session.exec(
            select(FlavorAccess.project_id)
            .where(FlavorAccess.flavor_row_id == flavor.id)
            .order_by(col(FlavorAccess.project_id))
        )
    )


def find_access(session: Session, flavor: Flavor, project_id: str) -> FlavorAccess | None:
    """The access entry of this project, or None."""
    return session.exec(
        select(FlavorAccess).where(
            FlavorAccess.flavor_row_id == flavor.id, FlavorAccess.project_id == project_id
        )
    ).first()
