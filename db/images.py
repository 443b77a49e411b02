"""Images: the record; the bytes lie in the image store under the image's id."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import UniqueConstraint, or_
from sqlmodel import Field, Session, SQLModel, col, select

from db.columns import id_column, instant, json_column, stamped
from domain.errors import NotFound


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
    size: int | None = None
    virtual_size: int | None = None
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
    member_id: str = Field(max_length=36)
    status: str = Field(default="pending", max_length=16)
    created_at: datetime = stamped()
    updated_at: datetime = stamped()


def get_visible_image(session: Session, image_id: str, project_id: str, is_admin: bool) -> Image:
    """The image with this id, if the project may use it: its own, public, community, or shared with
    it; NotFound otherwise."""
    statement = select(Image).where(Image.id == image_id, col(Image.deleted_at).is_(None))
    if not is_admin:
        shared = select(ImageMember.image_id).where(ImageMember.member_id == project_id)
        statement = statement.where(
            or_(
                Image.project_id == project_id,
                col(Image.visibility).in_(("public", "community")),
                (Image.visibility == "shared") & col(Image.id).in_(shared),
            )
        )
    image = session.exec(statement).first()
    if image is None:
        raise NotFound(f"No image found with ID {image_id}")
    return image
