"""What users write on servers: metadata and tags."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import Field
from sqlmodel import Session

from api.compute.server_bodies import Metadata, TagName, Tags
from api.compute.servers import scope_of
from api.context import Cloud, Db, TheCloud, allow
from api.microversion import Body, Route, View, versions
from api.paging import TheLinks
from api.policy import Caller, permits
from db.quotas import limits_of
from db.servers import Server, check_editable, get_server, replace_tags, tags_of
from db.session import now
from domain.errors import BadRequest, Conflict, NotFound, QuotaExceeded

router = APIRouter(route_class=Route)
TAGS_MAX = 50
_METADATA = "/v2.1/servers/{server_id}/metadata"
_TAGS = "/v2.1/servers/{server_id}/tags"
TheTag = Annotated[TagName, Path()]


class MetadataBody(Body):
    """``{"metadata": {key: value}}``."""

    metadata: Metadata


class MetaBody(Body):
    """``{"meta": {key: value}}``: exactly one."""

    meta: Annotated[Metadata, Field(min_length=1, max_length=1)]


class MetadataView(View):
    """All of a server's metadata."""

    metadata: dict[str, str]


class MetaView(View):
    """One item of it."""

    meta: dict[str, str]


class TagsBody(Body):
    """``{"tags": [...]}``."""

    tags: Tags


class TagsView(View):
    """All tags of a server, in order."""

    tags: list[str]


def _writable(db: Session, server_id: str, who: Caller, what: str) -> Server:
    server = get_server(db, server_id, scope_of(who))
    if server.locked and not permits(who, "servers:unlock:override"):
        raise Conflict(f"Instance {server.id} is locked")
    check_editable(server, what)
    return server


def _write_metadata(
    db: Session, cloud: Cloud, server: Server, metadata: dict[str, str]
) -> dict[str, str]:
    limits = limits_of(db, server.project_id, cloud.settings.quota_defaults)
    if 0 <= limits["metadata_items"] < len(metadata):
        raise QuotaExceeded(f"Maximum number of metadata items exceeds {limits['metadata_items']}")
    server.metadata_ = metadata
    server.updated_at = now()
    db.add(server)
    return metadata


@router.get(_METADATA)
def index_metadata(
    server_id: str, who: Annotated[Caller, allow("servers:metadata:read")], db: Db
) -> MetadataView:
    """All metadata."""
    return MetadataView(metadata=get_server(db, server_id, scope_of(who)).metadata_)


@router.post(_METADATA)
def merge_metadata(
    server_id: str,
    body: MetadataBody,
    who: Annotated[Caller, allow("servers:metadata:write")],
    db: Db,
    cloud: TheCloud,
) -> MetadataView:
    """Add items or change their values."""
    server = _writable(db, server_id, who, "update metadata")
    merged = {**server.metadata_, **body.metadata}
    return MetadataView(metadata=_write_metadata(db, cloud, server, merged))


@router.put(_METADATA)
def replace_metadata(
    server_id: str,
    body: MetadataBody,
    who: Annotated[Caller, allow("servers:metadata:write")],
    db: Db,
    cloud: TheCloud,
) -> MetadataView:
    """Make these the only items."""
    server = _writable(db, server_id, who, "update metadata")
    return MetadataView(metadata=_write_metadata(db, cloud, server, body.metadata))


@router.get(_METADATA + "/{key}")
def show_metadata_item(
    server_id: str, key: str, who: Annotated[Caller, allow("servers:metadata:read")], db: Db
) -> MetaView:
    """One item."""
    metadata = get_server(db, server_id, scope_of(who)).metadata_
    return MetaView(meta={key: _item(metadata, key)})


@router.put(_METADATA + "/{key}")
def set_metadata_item(
    server_id: str,
    key: str,
    body: MetaBody,
    who: Annotated[Caller, allow("servers:metadata:write")],
    db: Db,
    cloud: TheCloud,
) -> MetaView:
    """Add one item or change its value."""
    if key not in body.meta:
        raise BadRequest("Request body and URI mismatch")
    server = _writable(db, server_id, who, "update metadata")
    _write_metadata(db, cloud, server, {**server.metadata_, **body.meta})
    return MetaView(meta=body.meta)


@router.delete(_METADATA + "/{key}", status_code=204)
def delete_metadata_item(
    server_id: str,
    key: str,
    who: Annotated[Caller, allow("servers:metadata:write")],
    db: Db,
    cloud: TheCloud,
) -> None:
    """Remove one item."""
    server = get_server(db, server_id, scope_of(who))
    _item(server.metadata_, key)
    _writable(db, server_id, who, "delete metadata")
    _write_metadata(db, cloud, server, {k: v for k, v in server.metadata_.items() if k != key})


def _item(metadata: dict[str, str], key: str) -> str:
    if key not in metadata:
        raise NotFound("Metadata item was not found")
    return metadata[key]


def _write_tags(db: Session, server: Server, tags: list[str]) -> None:
    replace_tags(db, server.id, tags)
    server.updated_at = now()
    db.add(server)


def _tags(db: Session, server: Server) -> list[str]:
    return tags_of(db, [server.id]).get(server.id, [])


def _check_tag(server: Server, tag: str, tags: list[str]) -> None:
    if tag not in tags:
        raise NotFound(f"Server {server.id} has no tag '{tag}'")


@router.get(_TAGS)
@versions("2.26")
def index_tags(
    server_id: str, who: Annotated[Caller, allow("servers:tags:read")], db: Db
) -> TagsView:
    """All tags."""
    return TagsView(tags=_tags(db, get_server(db, server_id, scope_of(who))))


@router.put(_TAGS)
@versions("2.26")
def set_all_tags(
    server_id: str,
    body: TagsBody,
    who: Annotated[Caller, allow("servers:tags:write")],
    db: Db,
) -> TagsView:
    """Make these the only tags."""
    server = _writable(db, server_id, who, "update tags")
    _write_tags(db, server, body.tags)
    return TagsView(tags=sorted(body.tags))


@router.delete(_TAGS, status_code=204)
@versions("2.26")
def delete_all_tags(
    server_id: str, who: Annotated[Caller, allow("servers:tags:write")], db: Db
) -> None:
    """Remove all tags."""
    _write_tags(db, _writable(db, server_id, who, "update tags"), [])


@router.get(_TAGS + "/{tag}", status_code=204)
@versions("2.26")
def check_tag(
    server_id: str, tag: str, who: Annotated[Caller, allow("servers:tags:read")], db: Db
) -> None:
    """204 when the server has the tag, else 404."""
    server = get_server(db, server_id, scope_of(who))
    _check_tag(server, tag, _tags(db, server))


@router.put(_TAGS + "/{tag}", status_code=201, responses={204: {"description": "had it already"}})
@versions("2.26")
def add_tag(
    server_id: str,
    tag: TheTag,
    who: Annotated[Caller, allow("servers:tags:write")],
    db: Db,
    links: TheLinks,
) -> Response:
    """Add one tag."""
    server = _writable(db, server_id, who, "update tags")
    tags = _tags(db, server)
    if tag in tags:
        return Response(status_code=204)
    if len(tags) >= TAGS_MAX:
        raise BadRequest(f"The number of tags exceeded the per-server limit {TAGS_MAX}")
    _write_tags(db, server, [*tags, tag])
    place = links.href("servers", server.id, "tags", tag)
    return Response(status_code=201, headers={"Location": place})


@router.delete(_TAGS + "/{tag}", status_code=204)
@versions("2.26")
def delete_tag(
    server_id: str, tag: str, who: Annotated[Caller, allow("servers:tags:write")], db: Db
) -> None:
    """Remove one tag."""
    server = _writable(db, server_id, who, "delete tag")
    tags = _tags(db, server)
    _check_tag(server, tag, tags)
    _write_tags(db, server, [t for t in tags if t != tag])
