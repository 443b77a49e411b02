"""Members: the projects with which a shared image is shared. Owners offer, members accept or reject."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, StringConstraints
from sqlmodel import Session

from api.context import Db, allow
from api.fields import Text
from api.idempotency import KeyedRoute
from api.image.wire import timestamp
from api.policy import Caller
from db.images import (
    Image,
    ImageMember,
    add_member,
    find_member,
    get_own_image,
    get_visible_image,
    list_members,
    set_member_status,
)
from domain.errors import Forbidden, NotFound, TooLarge

router = APIRouter(prefix="/v2/images/{image_id}/members", route_class=KeyedRoute)
MAX_MEMBERS = 128

Reader = Annotated[Caller, allow("images:read")]
Writer = Annotated[Caller, allow("images:write")]


class NewMember(BaseModel):
    """Whom to share with."""

    member: Annotated[Text, StringConstraints(min_length=1, max_length=255)]


class Answer(BaseModel):
    """What the member says to it."""

    status: Literal["pending", "accepted", "rejected"]


def _view(member: ImageMember) -> dict[str, Any]:
    return {
        "image_id": member.image_id,
        "member_id": member.member_id,
        "status": member.status,
        "created_at": timestamp(member.created_at),
        "updated_at": timestamp(member.updated_at),
        "schema": "/v2/schemas/member",
    }


def _check_shared(image: Image) -> None:
    if image.visibility != "shared":
        raise Forbidden("Only shared images have members.")


def _member(session: Session, image: Image, member_id: str, who: Caller) -> ImageMember:
    """A membership the caller may see: its own, or any if the image is its own."""
    _check_shared(image)
    member = find_member(session, image.id, member_id)
    if member is None or not (_owns(image, who) or who.project_id == member_id):
        raise NotFound(f"{member_id:.80} not found in the member list of the image {image.id}.")
    return member


def _owns(image: Image, who: Caller) -> bool:
    return who.is_admin or image.project_id == who.project_id


@router.post("")
def create(image_id: str, body: NewMember, who: Writer, db: Db) -> dict[str, Any]:
    """Offer the image to a project."""
    image = get_own_image(db, image_id, who.project_id, who.is_admin)
    _check_shared(image)
    if len(list_members(db, image.id)) >= MAX_MEMBERS:
        raise TooLarge(f"The limit of {MAX_MEMBERS} image members has been exceeded.")
    return _view(add_member(db, image, body.member))


@router.get("")
def index(image_id: str, who: Reader, db: Db) -> dict[str, Any]:
    """The owner sees all members, a member itself."""
    image = get_visible_image(db, image_id, who.project_id, who.is_admin)
    _check_shared(image)
    members = list_members(db, image.id)
    if not _owns(image, who):
        members = [m for m in members if m.member_id == who.project_id]
    return {"members": [_view(m) for m in members], "schema": "/v2/schemas/members"}


@router.get("/{member_id}")
def show(image_id: str, member_id: str, who: Reader, db: Db) -> dict[str, Any]:
    """One membership."""
    image = get_visible_image(db, image_id, who.project_id, who.is_admin)
    return _view(_member(db, image, member_id, who))


@router.put("/{member_id}")
def update(image_id: str, member_id: str, body: Answer, who: Writer, db: Db) -> dict[str, Any]:
    """Accept or reject; only the member itself can."""
    image = get_visible_image(db, image_id, who.project_id, who.is_admin)
    member = _member(db, image, member_id, who)
    if who.project_id != member_id and not who.is_admin:
        raise Forbidden("Only the member itself may change its status.")
    set_member_status(db, member, body.status)
    return _view(member)


@router.delete("/{member_id}", status_code=204)
def delete(image_id: str, member_id: str, who: Writer, db: Db) -> None:
    """Stop sharing with a project."""
    image = get_own_image(db, image_id, who.project_id, who.is_admin)
    db.delete(_member(db, image, member_id, who))
