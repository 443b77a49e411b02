"""The JSON schemas clients ask for, and what the service says about its abilities."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter

from api.context import allow
from api.idempotency import KeyedRoute
from api.image.listing import MEMBER_STATUSES, STATUSES, VISIBILITIES
from api.policy import Caller
from domain.errors import BadRequest, NotFound
from runtime.imagestore import DISK_FORMATS

router = APIRouter(prefix="/v2", route_class=KeyedRoute)
Reader = Annotated[Caller, allow("images:read")]

_UUID = r"^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _shown(kind: str | list[str], description: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "readOnly": True, "description": description, **more}


def _optional(description: str, **more: Any) -> dict[str, Any]:
    return {"type": ["null", "string"], "description": description, **more}


IMAGE: dict[str, Any] = {
    "name": "image",
    "properties": {
        "id": _text("Identifies the image", pattern=_UUID),
        "name": _optional("What people call it", maxLength=255),
        "status": _shown("string", "Where it is in its life", enum=list(STATUSES)),
        "visibility": _text("Who sees it", enum=list(VISIBILITIES)),
        "protected": {"type": "boolean", "description": "Whether deleting it is refused"},
        "os_hidden": {"type": "boolean", "description": "Whether lists leave it out unless asked"},
        "checksum": _shown(["null", "string"], "MD5 of the data", maxLength=32),
        "os_hash_algo": _shown(["null", "string"], "Algorithm of os_hash_value", maxLength=64),
        "os_hash_value": _shown(["null", "string"], "Digest of the data", maxLength=128),
        "owner": _optional("Project it belongs to", maxLength=255),
        "size": _shown(["null", "integer"], "Bytes of data"),
        "virtual_size": _shown(["null", "integer"], "Bytes of the disk a guest sees"),
        "container_format": _optional("What wraps the disk", enum=[None, "bare"]),
        "disk_format": _optional("Format of the disk", enum=[None, *DISK_FORMATS]),
        "created_at": _shown("string", "When it was recorded"),
        "updated_at": _shown("string", "When it was last changed"),
        "tags": {
            "type": "array",
            "description": "Words attached to it",
            "items": {"type": "string", "maxLength": 255},
        },
        "min_ram": {"type": "integer", "description": "MiB of memory a guest of it needs"},
        "min_disk": {"type": "integer", "description": "GiB of disk a guest of it needs"},
        "self": _shown("string", "Where it is"),
        "file": _shown("string", "Where its data is"),
        "schema": _shown("string", "Where this document is"),
    },
    "additionalProperties": {"type": "string"},
    "links": [
        {"rel": "self", "href": "{self}"},
        {"rel": "enclosure", "href": "{file}"},
        {"rel": "describedby", "href": "{schema}"},
    ],
}
MEMBER: dict[str, Any] = {
    "name": "member",
    "properties": {
        "member_id": _text("Project the image is shared with"),
        "image_id": _text("Identifies the image", pattern=_UUID),
        "created_at": _text("When it was shared"),
        "updated_at": _text("When the membership was last changed"),
        "status": _text("What the member says to it", enum=list(MEMBER_STATUSES)),
        "schema": {"type": "string", "readOnly": True},
    },
}


def _collection(name: str, item: dict[str, Any], links: list[dict[str, str]]) -> dict[str, Any]:
    paging = {"first": {"type": "string"}, "next": {"type": "string"}} if links[1:] else {}
    return {
        "name": name,
        "properties": {
            name: {"type": "array", "items": item},
            "schema": {"type": "string"},
            **paging,
        },
        "links": links,
    }


_DESCRIBED = {"rel": "describedby", "href": "{schema}"}
_PAGES = [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"}]
DOCUMENTS = {
    "image": IMAGE,
    "images": _collection("images", IMAGE, [*_PAGES, _DESCRIBED]),
    "member": MEMBER,
    "members": _collection("members", MEMBER, [_DESCRIBED]),
}


@router.get("/schemas/{name}")
def show_schema(name: str, who: Reader) -> dict[str, Any]:
    """The JSON schema of an entity."""
    if name not in DOCUMENTS:
        raise NotFound(f"There is no schema {name:.80}.")
    return DOCUMENTS[name]


@router.get("/info/import")
def show_import(who: Reader) -> dict[str, Any]:
    """Ways to import an image: none, so that nobody makes this service fetch things for them."""
    methods = {"type": "array", "description": "Import methods available.", "value": []}
    return {"import-methods": methods}


@router.get("/info/stores")
def show_stores(who: Reader) -> dict[str, Any]:
    """Several stores: not here."""
    raise NotFound("Multi backend is not supported at this site.")


@router.post("/images/{image_id}/import")
def import_image(image_id: str, who: Annotated[Caller, allow("images:write")]) -> None:
    """Import: see ``show_import``."""
    raise BadRequest("No image import method is enabled; upload with PUT /v2/images/{id}/file.")
