"""Images: create, list, show, update, delete; deactivate and reactivate; tags."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request, Response
from sqlmodel import Session

from api.context import Db, TheCloud, allow
from api.idempotency import KeyedRoute
from api.image import listing, wire
from api.policy import Caller, permits
from db.images import (
    Image,
    add_image,
    delete_image,
    get_own_image,
    get_visible_image,
    list_images,
    project_usage,
    save_image,
)
from db.quotas import limits_of, lock_quota
from db.session import transaction
from domain.errors import BadRequest, Forbidden, NotFound, TooLarge
from domain.ids import new_id
from runtime.imagestore import ImageStore
from runtime.settings import Settings

router = APIRouter(prefix="/v2", route_class=KeyedRoute)
MAX_PATCH_BYTES = 1024**2

Reader = Annotated[Caller, allow("images:read")]
Writer = Annotated[Caller, allow("images:write")]
TagName = Annotated[str, Path(min_length=1, max_length=255, pattern="^[^\x00]*$")]


async def _patch_body(request: Request) -> Any:
    """The JSON of a body whose content type FastAPI does not take for JSON."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_PATCH_BYTES:
            raise TooLarge("The request body is too large.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("Malformed request body") from None


@router.post("/images", status_code=201)
def create_image(
    body: wire.NewImage, who: Writer, db: Db, cloud: TheCloud, response: Response
) -> dict[str, Any]:
    """Record an image; its bytes come with PUT …/file."""
    for name in body.__pydantic_extra__ or {}:
        wire.check_writable(name)
    owner = body.owner or who.project_id
    if not owner:
        raise BadRequest("An image needs an owner: use a token scoped to a project.")
    if owner != who.project_id and not who.is_admin:
        raise Forbidden(f"You are not permitted to create images owned by '{owner}'.")
    _check_publicize(who, "", body.visibility)
    _check_count(db, owner, cloud.settings)
    image = Image(id=(body.id or new_id()).lower(), project_id=owner)
    body.write_to(image)
    add_image(db, image)
    response.headers["Location"] = f"{cloud.settings.public_url}/image/v2/images/{image.id}"
    return wire.view(image)


def _check_publicize(who: Caller, before: str, after: str) -> None:
    if after == "public" != before and not permits(who, "images:publicize"):
        raise Forbidden("You are not authorized to complete publicize_image action.")


def _check_count(session: Session, project_id: str, settings: Settings) -> None:
    lock_quota(session, project_id)
    limit = limits_of(session, project_id, settings.image_quota_defaults)["image_count_total"]
    if 0 <= limit <= project_usage(session, project_id)[0]:
        raise TooLarge(f"Project {project_id} may have {limit} images and has that many.")


@router.get("/images")
def index(request: Request, who: Reader, db: Db) -> dict[str, Any]:
    """One page of the images the caller sees."""
    query = listing.parse(request.query_params.multi_items())
    marker = None
    if query.marker is not None:
        try:
            marker = get_visible_image(db, query.marker, who.project_id, who.is_admin)
        except NotFound:
            raise BadRequest(f"Marker {query.marker:.80} could not be found.") from None
    images = list_images(
        db, who.project_id, who.is_admin, query.filters, query.order, marker, query.limit
    )
    return {"images": [wire.view(i) for i in images], **query.links([i.id for i in images])}


@router.get("/images/{image_id}")
def show(image_id: str, who: Reader, db: Db) -> dict[str, Any]:
    """One image."""
    return wire.view(get_visible_image(db, image_id, who.project_id, who.is_admin))


@router.patch("/images/{image_id}")
def update(
    image_id: str,
    request: Request,
    operations: Annotated[Any, Depends(_patch_body)],
    who: Writer,
    db: Db,
) -> dict[str, Any]:
    """Change attributes and properties by a JSON patch."""
    image = get_own_image(db, image_id, who.project_id, who.is_admin)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    wanted = wire.patched(wire.written(image), media_type, operations)
    if wanted.owner != image.project_id:
        if not who.is_admin:
            raise Forbidden("Owner can't be updated by non admin.")
        if wanted.owner is None:
            raise BadRequest("An image needs an owner.")
        image.project_id = wanted.owner
    for name in ("disk_format", "container_format"):
        if image.status != "queued" and getattr(wanted, name) != getattr(image, name):
            raise Forbidden(f"Attribute {name} can be only replaced for a queued image.")
    _check_publicize(who, image.visibility, wanted.visibility)
    wanted.write_to(image)
    save_image(db, image)
    return wire.view(image)


@router.delete("/images/{image_id}", status_code=204)
def delete(image_id: str, who: Writer, cloud: TheCloud) -> None:
    """Delete an image: first the record, then, once that is certain, the bytes."""
    with transaction(cloud.engine) as session:
        delete_image(session, get_own_image(session, image_id, who.project_id, who.is_admin))
    ImageStore(cloud.settings.image_dir).remove(image_id)


@router.post("/images/{image_id}/actions/{action}", status_code=204)
def act(image_id: str, action: Literal["deactivate", "reactivate"], who: Writer, db: Db) -> None:
    """Withhold an image's data from all but admins, or give it back."""
    image = get_own_image(db, image_id, who.project_id, who.is_admin)
    if image.status not in ("active", "deactivated"):
        raise BadRequest(f"Not allowed to {action} an image in status '{image.status}'.")
    image.status = "deactivated" if action == "deactivate" else "active"
    save_image(db, image)


@router.put("/images/{image_id}/tags/{tag}", status_code=204)
def add_tag(image_id: str, tag: TagName, who: Writer, db: Db) -> None:
    """Tag an image; a tag it has already changes nothing."""
    image = get_own_image(db, image_id, who.project_id, who.is_admin)
    if tag in image.tags:
        return
    if len(image.tags) >= wire.MAX_TAGS:
        raise TooLarge(f"The limit of {wire.MAX_TAGS} image tags has been exceeded.")
    image.tags = sorted([*image.tags, tag])
    save_image(db, image)


@router.delete("/images/{image_id}/tags/{tag}", status_code=204)
def remove_tag(image_id: str, tag: TagName, who: Writer, db: Db) -> None:
    """Take a tag off."""
    image = get_own_image(db, image_id, who.project_id, who.is_admin)
    if tag not in image.tags:
        raise NotFound(f"Image {image_id} has no tag {tag:.80}.")
    image.tags = [kept for kept in image.tags if kept != tag]
    save_image(db, image)
