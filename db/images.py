"""Images: the record; the bytes lie in the image store under the image's id."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    UniqueConstraint,
    and_,
    cast,
    false,
    func,
    or_,
    true,
)
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import id_column, instant, json_column, stamped
from db.paging import keyset
from db.session import now
from domain.errors import Conflict, Forbidden, NotFound

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "eq": operator.eq,
    "neq": operator.ne,
}
"""How an instant may be compared in a list's filter."""


class Image(SQLModel, table=True):
    """An image and its properties (Glance's model)."""

    __tablename__ = "image"
    id: str = id_column()
    name: str | None = Field(default=None, max_length=255, index=True)
    project_id: str = Field(max_length=36, index=True)
    status: str = Field(default="queued", max_length=16)
    """queued, saving, active, deactivated, killed, deleted."""
    visibility: str = Field(default="shared", max_length=16)
    """public, community, shared, private."""
    container_format: str | None = Field(default=None, max_length=16)
    disk_format: str | None = Field(default=None, max_length=16)
    min_disk: int = 0
    min_ram: int = 0
    protected: bool = False
    hidden: bool = False
    size: int | None = Field(default=None, sa_type=BigInteger)
    """Bytes in the store."""
    virtual_size: int | None = Field(default=None, sa_type=BigInteger)
    """Bytes a guest sees, as the image's header says."""
    checksum: str | None = Field(default=None, max_length=32)
    """MD5, as clients expect it."""
    sha512: str | None = Field(default=None, max_length=128)
    properties: dict[str, str] = json_column()
    tags: list[str] = json_column(list)
    created_at: datetime = stamped()
    updated_at: datetime = stamped()
    deleted_at: datetime | None = instant()


class ImageMember(SQLModel, table=True):
    """A project with which a shared image is shared."""

    __tablename__ = "image_member"
    __table_args__ = (UniqueConstraint("image_id", "member_id"),)
    id: str = id_column()
    image_id: str = Field(foreign_key="image.id", max_length=36, index=True)
    member_id: str = Field(max_length=255)
    status: str = Field(default="pending", max_length=16)
    """pending, accepted, rejected."""
    created_at: datetime = stamped()
    updated_at: datetime = stamped()


@dataclass(frozen=True, slots=True)
class ImageFilters:
    """What a list is narrowed to; an empty filter shows what Glance shows by default."""

    among: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Column → accepted values."""
    visibility: str | None = None
    """One of the four, or ``all``."""
    member_status: str = "accepted"
    """Of others' shared images: pending, accepted, rejected or ``all``."""
    tags: Sequence[str] = ()
    """All of these."""
    size_min: int | None = None
    size_max: int | None = None
    instants: Sequence[tuple[str, str, datetime]] = ()
    """(column, key of OPERATORS, instant)"""
    properties: Mapping[str, str] = field(default_factory=dict)


def get_visible_image(
    session: Session, image_id: str, project_id: str, is_admin: bool, *, lock: bool = False
) -> Image:
    """The image, if this project may see it: it is its own, public, community, or shared with it (in
    whatever member status). NotFound otherwise. ``lock`` keeps others from changing it meanwhile."""
    image = _find(session, image_id, lock)
    if image is None or not (is_admin or _may_see(session, image, project_id)):
        raise NotFound(f"No image found with ID {image_id}")
    return image


def _find(session: Session, image_id: str, lock: bool) -> Image | None:
    if "\x00" in image_id:  # PostgreSQL would refuse the question
        return None
    image = session.get(Image, image_id, with_for_update=True if lock else None)
    return None if image is None or image.deleted_at is not None else image


def get_own_image(session: Session, image_id: str, project_id: str, is_admin: bool) -> Image:
    """The image, locked, if this project may change it. NotFound when it cannot see it, Forbidden when
    it is another project's."""
    image = get_visible_image(session, image_id, project_id, is_admin, lock=True)
    if not is_admin and image.project_id != project_id:
        raise Forbidden("You are not permitted to modify this image.")
    return image


def _may_see(session: Session, image: Image, project_id: str) -> bool:
    if image.visibility in ("public", "community"):
        return True
    if project_id and image.project_id == project_id:
        return True
    return image.visibility == "shared" and find_member(session, image.id, project_id) is not None


def add_image(session: Session, image: Image) -> None:
    """Record a new image. Conflict when the id was ever used."""
    if session.get(Image, image.id) is not None:
        raise Conflict(f"Image ID {image.id} already exists!")
    session.add(image)
    session.flush()


def save_image(session: Session, image: Image) -> None:
    """Write changes made to an image."""
    image.updated_at = now()
    session.add(image)
    session.flush()


def delete_image(session: Session, image: Image) -> None:
    """End an image's life; the row stays for those who refer to it. Forbidden while it is protected."""
    if image.protected:
        raise Forbidden(f"Image {image.id} is protected and cannot be deleted.")
    image.status = "deleted"
    image.deleted_at = now()
    save_image(session, image)
    for member in list_members(session, image.id):
        session.delete(member)


def project_usage(session: Session, project_id: str) -> tuple[int, int]:
    """(number of images, bytes they hold) of a project."""
    count, size = session.exec(
        select(func.count(col(Image.id)), func.sum(Image.size)).where(
            Image.project_id == project_id, col(Image.deleted_at).is_(None)
        )
    ).one()
    return count, int(size or 0)


def list_images(
    session: Session,
    project_id: str,
    is_admin: bool,
    filters: ImageFilters,
    order: Sequence[tuple[str, bool]],
    marker: Image | None,
    limit: int,
) -> list[Image]:
    """One page of the images this project sees. ``order`` is (column name, descending) pairs; ties are
    broken by ``created_at`` and ``id`` in the last direction."""
    names = [*order, *((n, order[-1][1]) for n in ("created_at", "id") if n not in dict(order))]
    columns = [(getattr(Image, name), descending) for name, descending in names]
    after = None if marker is None else [getattr(marker, name) for name, _ in names]
    statement = select(Image).where(
        col(Image.deleted_at).is_(None),
        _listed(project_id, is_admin, filters),
        *_conditions(filters),
    )
    return list(session.scalars(keyset(statement, columns, after, limit)))


def _listed(project_id: str, is_admin: bool, filters: ImageFilters) -> ColumnElement[bool]:
    visibility = col(Image.visibility)
    mine = and_(col(Image.project_id) == project_id, true() if project_id else false())
    shared = select(ImageMember.image_id).where(ImageMember.member_id == project_id)
    if filters.member_status != "all":
        shared = shared.where(ImageMember.status == filters.member_status)
    seen = or_(
        mine,
        visibility.in_(("public", "community")),
        and_(visibility == "shared", col(Image.id).in_(shared)),
        true() if is_admin else false(),
    )
    if filters.visibility is None:  # others' community images show only to those who ask
        return and_(seen, or_(visibility != "community", mine))
    if filters.visibility == "all":
        return seen
    return and_(seen, visibility == filters.visibility)


def _conditions(filters: ImageFilters) -> list[ColumnElement[bool]]:
    image: Any = Image  # columns chosen by name
    terms = [getattr(image, name).in_(values) for name, values in filters.among.items()]
    terms += [_holds(image.tags, "[", json.dumps(tag)) for tag in filters.tags]
    if filters.size_min is not None:
        terms.append(image.size >= filters.size_min)
    if filters.size_max is not None:
        terms.append(image.size <= filters.size_max)
    terms += [OPERATORS[op](getattr(image, name), when) for name, op, when in filters.instants]
    for name, value in filters.properties.items():
        terms.append(_holds(image.properties, "{", f"{json.dumps(name)}: {json.dumps(value)}"))
    return terms


def _holds(column: Any, opening: str, element: str) -> ColumnElement[bool]:
    # A JSON column is one text in both databases, and inside its strings quotes are escaped, so what
    # begins with a quote after the opening bracket or a comma is an element. (JSON paths would differ
    # between databases in how they spell keys.) Comparing after REPLACE minds the case; LIKE would not.
    text = cast(column, String)
    return or_(*(func.replace(text, start + element, "") != text for start in (opening, ", ")))


def find_member(session: Session, image_id: str, member_id: str) -> ImageMember | None:
    """The membership of a project, if there is one."""
    if "\x00" in member_id:
        return None
    return session.exec(
        select(ImageMember).where(
            ImageMember.image_id == image_id, ImageMember.member_id == member_id
        )
    ).first()


def list_members(session: Session, image_id: str) -> list[ImageMember]:
    """All members of an image, oldest first."""
    return list(
        session.exec(
            select(ImageMember)
            .where(ImageMember.image_id == image_id)
            .order_by(col(ImageMember.created_at), col(ImageMember.id))
        )
    )


def add_member(session: Session, image: Image, member_id: str) -> ImageMember:
    """Offer a shared image to a project. Conflict when it is a member already."""
    if find_member(session, image.id, member_id) is not None:
        raise Conflict(f"The target member {member_id} is already associated with this image.")
    member = ImageMember(image_id=image.id, member_id=member_id)
    session.add(member)
    session.flush()
    return member


def set_member_status(session: Session, member: ImageMember, status: str) -> None:
    """A member's answer: pending, accepted or rejected."""
    member.status = status
    member.updated_at = now()
    session.add(member)
    session.flush()
