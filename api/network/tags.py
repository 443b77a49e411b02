"""Tags of networks, subnets, ports and security groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field
from sqlmodel import Session

from api.answers import AnsweringRoute
from api.context import Db
from api.network.wire import Entry, Json, Plain, Reader, Writer, must_own, scope
from api.policy import Caller
from db.network.networks import get_network, get_subnet
from db.network.ports import get_port
from db.network.security_groups import get_group
from db.session import now
from domain.errors import BadRequest, NotFound

router = APIRouter(prefix="/v2.0", tags=["tags"], route_class=AnsweringRoute)
MAX_TAGS = 50
_FINDERS: dict[str, Callable[[Session, str, str | None], Any]] = {
    "networks": get_network,
    "ports": get_port,
    "security-groups": get_group,
    "subnets": get_subnet,
}
Collection = Annotated[str, Path(pattern="^(networks|ports|security-groups|subnets)$")]
Tag = Annotated[str, Path(min_length=1, max_length=255)]


class Tags(Entry):
    """All tags of a resource."""

    tags: Annotated[
        list[Annotated[Plain, Field(min_length=1, max_length=255)]], Field(max_length=MAX_TAGS)
    ]


def _find(db: Session, who: Caller, collection: str, resource_id: str) -> Any:
    if collection not in _FINDERS:
        raise NotFound("The resource could not be found.")
    return _FINDERS[collection](db, resource_id, scope(who))


def _owned(db: Session, who: Caller, collection: str, resource_id: str) -> Any:
    row = _find(db, who, collection, resource_id)
    must_own(who, row.project_id, "update_tags")
    return row


def _store(db: Session, row: Any, tags: list[str]) -> None:
    if len(tags) > MAX_TAGS:
        raise BadRequest(f"A resource has at most {MAX_TAGS} tags.")
    row.tags = sorted(set(tags))
    row.updated_at = now()
    row.revision += 1
    db.add(row)


def _missing(tag: str) -> NotFound:
    return NotFound(f"Tag {tag} could not be found.", "TagNotFound")


@router.get("/{collection}/{resource_id}/tags")
def list_tags(collection: Collection, resource_id: str, who: Reader, db: Db) -> Json:
    """All tags of a resource."""
    return {"tags": _find(db, who, collection, resource_id).tags}


@router.put("/{collection}/{resource_id}/tags")
def replace_tags(collection: Collection, resource_id: str, body: Tags, who: Writer, db: Db) -> Json:
    """Give a resource exactly these tags."""
    row = _owned(db, who, collection, resource_id)
    _store(db, row, body.tags)
    return {"tags": row.tags}


@router.delete("/{collection}/{resource_id}/tags", status_code=204)
def remove_tags(collection: Collection, resource_id: str, who: Writer, db: Db) -> Response:
    """Take all tags away."""
    _store(db, _owned(db, who, collection, resource_id), [])
    return Response(status_code=204)


@router.get("/{collection}/{resource_id}/tags/{tag}", status_code=204)
def check_tag(collection: Collection, resource_id: str, tag: Tag, who: Reader, db: Db) -> Response:
    """Whether the resource has the tag: 204, else 404."""
    if tag not in _find(db, who, collection, resource_id).tags:
        raise _missing(tag)
    return Response(status_code=204)


@router.put("/{collection}/{resource_id}/tags/{tag}", status_code=201)
def add_tag(collection: Collection, resource_id: str, tag: Tag, who: Writer, db: Db) -> Response:
    """Add a tag; having it already is fine."""
    row = _owned(db, who, collection, resource_id)
    _store(db, row, [*row.tags, tag])
    return Response(status_code=201)


@router.delete("/{collection}/{resource_id}/tags/{tag}", status_code=204)
def remove_tag(collection: Collection, resource_id: str, tag: Tag, who: Writer, db: Db) -> Response:
    """Take one tag away."""
    row = _owned(db, who, collection, resource_id)
    if tag not in row.tags:
        raise _missing(tag)
    _store(db, row, [kept for kept in row.tags if kept != tag])
    return Response(status_code=204)
