"""An image as it travels: what a client may say of it, what it is shown, and Glance's JSON patch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import jsonpatch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
)

from api.errors import explain
from api.fields import MAX_INT, Text
from db.images import Image
from domain.errors import BadRequest, Conflict, Forbidden, TooLarge, UnsupportedMedia

MAX_PROPERTIES = 128
MAX_TAGS = 128
READ_ONLY = frozenset(
    {
        "checksum",
        "created_at",
        "direct_url",
        "file",
        "os_hash_algo",
        "os_hash_value",
        "schema",
        "self",
        "size",
        "status",
        "stores",
        "updated_at",
        "virtual_size",
    }
)
RESERVED = frozenset({"deleted", "deleted_at", "is_public", "locations"})
_RESERVED_PREFIX = "os_glance"
_POINTER_ESCAPES = re.compile("~[01]")

ShortText = Annotated[Text, StringConstraints(max_length=255)]
Tag = Annotated[Text, StringConstraints(min_length=1, max_length=255)]
PropertyValue = Annotated[Text, StringConstraints(max_length=65535)]
Amount = Annotated[StrictInt, Field(ge=0, le=MAX_INT)]


class ImageFields(BaseModel):
    """What a client may say of an image; every other key is one of its properties."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, PropertyValue]

    name: ShortText | None = None
    visibility: Literal["public", "community", "shared", "private"] = "shared"
    container_format: Literal["bare"] | None = None
    disk_format: Literal["qcow2", "raw"] | None = None
    min_disk: Amount = 0
    min_ram: Amount = 0
    protected: StrictBool = False
    os_hidden: StrictBool = False
    owner: Annotated[Text, StringConstraints(min_length=1, max_length=36)] | None = None
    tags: list[Tag] = Field(default_factory=list)

    def write_to(self, image: Image) -> None:
        """Make the image say this. TooLarge for too many tags or properties."""
        properties = self.__pydantic_extra__ or {}
        tags = sorted(set(self.tags))
        if len(properties) > MAX_PROPERTIES:
            raise TooLarge(f"The limit of {MAX_PROPERTIES} image properties has been exceeded.")
        if len(tags) > MAX_TAGS:
            raise TooLarge(f"The limit of {MAX_TAGS} image tags has been exceeded.")
        for name in properties:
            if not 0 < len(name) <= 255 or not name.isprintable():
                raise BadRequest("A property's name must be 1 to 255 printable characters.")
        image.name = self.name
        image.visibility = self.visibility
        image.container_format = self.container_format
        image.disk_format = self.disk_format
        image.min_disk = self.min_disk
        image.min_ram = self.min_ram
        image.protected = self.protected
        image.hidden = self.os_hidden
        image.properties = dict(properties)
        image.tags = tags


class NewImage(ImageFields):
    """The body of a create: the client may also choose the id."""

    id: (
        Annotated[
            str, StringConstraints(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")
        ]
        | None
    ) = None


_BASE = frozenset(ImageFields.model_fields)


def check_writable(name: str) -> None:
    """Forbidden for attributes that are not the client's to write."""
    if name in READ_ONLY:
        raise Forbidden(f"Attribute '{name}' is read-only.")
    if name in RESERVED or name.startswith(_RESERVED_PREFIX):
        raise Forbidden(f"Attribute '{name}' is reserved.")


def written(image: Image) -> dict[str, Any]:
    """The part of an image that a client may change."""
    return {
        "name": image.name,
        "visibility": image.visibility,
        "container_format": image.container_format,
        "disk_format": image.disk_format,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "protected": image.protected,
        "os_hidden": image.hidden,
        "owner": image.project_id,
        "tags": list(image.tags),
        **image.properties,
    }


def view(image: Image) -> dict[str, Any]:
    """An image as Glance shows it."""
    return written(image) | {
        "id": image.id,
        "status": image.status,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "checksum": image.checksum,
        "os_hash_algo": "sha512" if image.sha512 else None,
        "os_hash_value": image.sha512,
        "created_at": timestamp(image.created_at),
        "updated_at": timestamp(image.updated_at),
        "self": f"/v2/images/{image.id}",
        "file": f"/v2/images/{image.id}/file",
        "schema": "/v2/schemas/image",
    }


def timestamp(instant: datetime) -> str:
    """To the second, with a Z."""
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


def patched(document: Mapping[str, Any], media_type: str, operations: Any) -> ImageFields:
    """What ``written`` says after a patch in one of Glance's two dialects.

    UnsupportedMedia for another content type, BadRequest for a malformed patch or value, Forbidden for
    what is not the client's to change, Conflict for what is not, or already, there.
    """
    dialects = {
        "application/openstack-images-v2.1-json-patch": _standard,
        "application/openstack-images-v2.0-json-patch": _early,
    }
    if media_type not in dialects:
        raise UnsupportedMedia(
            f"Content type '{media_type:.80}' is not supported; use one of {', '.join(dialects)}."
        )
    if not isinstance(operations, list):
        raise BadRequest("Request body must be a JSON array of operation objects.")
    result: Any = dict(document)
    for operation in operations:
        change = dialects[media_type](operation)
        _check_change(result, change)
        try:
            result = jsonpatch.apply_patch(result, [change])
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
            raise BadRequest(f"The patch cannot be applied: {error!s:.200}") from None
    try:
        return ImageFields.model_validate(result)
    except ValidationError as error:
        raise BadRequest(explain(error.errors())) from None


def _standard(operation: Any) -> dict[str, Any]:
    """``{"op": "add", "path": "/x", "value": …}``"""
    if not isinstance(operation, dict):
        raise BadRequest("Operations must be JSON objects.")
    op = operation.get("op")
    if op not in ("add", "remove", "replace"):
        raise BadRequest(f"Operation '{op!s:.80}' is not one of 'add', 'remove' and 'replace'.")
    if op != "remove" and "value" not in operation:
        raise BadRequest(f'Operation "{op}" requires a member named "value".')
    return {"op": op, "path": operation.get("path"), "value": operation.get("value")}


def _early(operation: Any) -> dict[str, Any]:
    """``{"add": "/x", "value": …}``"""
    names = {"add", "remove", "replace"}
    if not isinstance(operation, dict) or len(names & operation.keys()) != 1:
        raise BadRequest("An operation must have exactly one of 'add', 'remove' and 'replace'.")
    (op,) = names & operation.keys()
    return _standard(operation | {"op": op, "path": operation[op]})


def _check_change(document: Any, change: dict[str, Any]) -> None:
    path = change["path"]
    if not isinstance(path, str) or not path.startswith("/") or len(path) == 1:
        raise BadRequest(f"Invalid JSON pointer '{path!s:.80}': it must start with / and a name.")
    name, *deeper = (
        _POINTER_ESCAPES.sub(lambda m: {"~0": "~", "~1": "/"}[m[0]], part)
        for part in path[1:].split("/")
    )
    check_writable(name)
    if name == "id":
        raise Forbidden("Attribute 'id' is read-only.")
    if deeper:
        if name != "tags" or len(deeper) > 1:
            raise BadRequest(f"Invalid JSON pointer for this resource: '{path:.80}'")
        return
    if name in _BASE and change["op"] == "remove":
        raise Forbidden(f"Property {name} may not be removed.")
    if name not in _BASE and change["op"] == "add" and name in document:
        raise Conflict(f"Property {name} already present.")
    if change["op"] != "add" and name not in document:
        raise Conflict(f"Property {name} does not exist.")
