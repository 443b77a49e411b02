"""What every network resource shares on the wire: bodies, ownership, list queries, common attributes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote, urlencode

from fastapi import Depends, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import ColumnElement
from sqlmodel import Session, SQLModel

from api.context import Cloud, Db, TheCloud, after_commit, allow
from api.policy import Caller
from db.network.listing import Attributes, Page, list_rows
from domain.errors import BadRequest, Forbidden

MAX_BULK = 500
MAX_PAGE = 1000
_CONTROLS = ("fields", "limit", "marker", "page_reverse", "sort_key", "sort_dir")

T = TypeVar("T", bound=SQLModel)
Json = dict[str, Any]
Views = Callable[[Session, Sequence[T], Caller], list[Json]]
Reader = Annotated[Caller, allow("network:read")]
Writer = Annotated[Caller, allow("network:write")]
Admin = Annotated[Caller, allow("network:admin")]


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("Text must not hold NUL characters")
    return text


Plain = Annotated[str, AfterValidator(_no_nul)]
Text = Annotated[Plain, Field(max_length=255)]
Id = Annotated[Plain, Field(max_length=64)]


async def refuse_nul(request: Request) -> None:
    """No name or id in a URL holds a NUL; databases refuse it in their own ways."""
    if "\x00" in request.url.path or "\x00" in unquote(request.url.query):
        raise BadRequest("The URL holds a NUL character.")


class Entry(BaseModel):
    """Base of the attributes in a request."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the named attributes that the request holds."""
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}


class OwnedEntry(Entry):
    """Attributes of a create: an admin may make things for other projects."""

    project_id: Id | None = None
    tenant_id: Id | None = None


class Envelope(BaseModel):
    """``{"network": {…}}`` or, for several at once, ``{"networks": [{…}, …]}``. A subclass declares
    these two fields, in this order."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, data: Any) -> Any:
        single, plural = cls.model_fields
        if not isinstance(data, dict) or len(data.keys() & {single, plural}) != 1:
            raise PydanticCustomError(
                "missing", "Unable to find '{key}' in request body", {"key": single}
            )
        if next(iter(data.values())) in (None, []):
            raise PydanticCustomError("missing", "Resources required", {})
        return data

    @property
    def bulk(self) -> bool:
        """Whether several were asked for."""
        return next(iter(self.model_fields_set)) != next(iter(type(self).model_fields))

    def entries(self) -> list[Any]:
        """What was asked for."""
        value = getattr(self, next(iter(self.model_fields_set)))
        return list(value) if self.bulk else [value]

    def answer(self, views: list[Json]) -> Json:
        """The made resources under the key of the request."""
        key = next(iter(self.model_fields_set))
        return {key: views if self.bulk else views[0]}


def scope(who: Caller) -> str | None:
    """Whose resources the caller sees: his project's, or, for an admin, everybody's (None)."""
    return None if who.is_admin else who.project_id


def owner(who: Caller, entry: OwnedEntry) -> str:
    """The project a new resource belongs to."""
    asked = entry.project_id or entry.tenant_id or who.project_id
    if asked != who.project_id and not who.is_admin:
        raise BadRequest(
            "Specifying 'project_id' or 'tenant_id' other than the authenticated project in request "
            "requires admin privileges"
        )
    if not asked:
        raise BadRequest("The token has no project: give a 'project_id'.")
    return asked


def not_allowed(action: str) -> Forbidden:
    """Neutron's words for a rule that does not hold."""
    return Forbidden(f"rule:{action} is disallowed by policy", "PolicyNotAuthorized")


def must_own(who: Caller, project_id: str, action: str) -> None:
    """Forbidden unless the visible thing is the caller's or the caller runs the cloud."""
    if not who.is_admin and project_id != who.project_id:
        raise not_allowed(action)


def admin_only(who: Caller, entry: Entry, names: Collection[str], action: str) -> None:
    """Forbidden when another than an admin gives one of these attributes."""
    for name in sorted(entry.model_fields_set & set(names)):
        if not who.is_admin:
            raise not_allowed(f"{action}:{type(entry).model_fields[name].alias or name}")


def settle(session: Session, cloud: Cloud, hosts: set[str]) -> None:
    """Tell the hosts that what they filter by has changed, as soon as it has."""
    if hosts:
        after_commit(session, partial(cloud.launcher.refresh_hosts, hosts))


def stamp(at: datetime) -> str:
    """An instant as Neutron writes it, e.g. ``2026-01-31T12:00:00Z``."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def common(row: Any) -> Json:
    """The attributes every resource has."""
    return {
        "id": row.id,
        "tenant_id": row.project_id,
        "project_id": row.project_id,
        "description": row.description,
        "created_at": stamp(row.created_at),
        "updated_at": stamp(getattr(row, "updated_at", row.created_at)),
        "revision_number": row.revision,
    }


def standard_columns(model: Any) -> dict[str, Any]:
    """Wire name → column of the attributes every resource has."""
    names = ("id", "project_id", "description", "created_at")
    columns = {name: getattr(model, name) for name in names}
    changed = getattr(model, "updated_at", model.created_at)
    return columns | {
        "tenant_id": model.project_id,
        "revision_number": model.revision,
        "updated_at": changed,
    }


def select_fields(request: Request, views: list[Json]) -> list[Json]:
    """Only the asked ``fields`` of each view; all when none is asked."""
    fields = set(request.query_params.getlist("fields"))
    if not fields:
        return views
    return [{name: value for name, value in view.items() if name in fields} for view in views]


@dataclass(frozen=True, slots=True)
class Lister:
    """Answers the lists of one request; a dependency."""

    request: Request
    cloud: TheCloud
    who: Reader
    db: Db

    def answer(
        self, key: str, of: Attributes[T], visible: ColumnElement[bool], views: Views[T]
    ) -> Json:
        """``{key: [...]}`` with ``<key>_links`` when a page was asked for."""
        page = parse_page(self.request)
        asked = {*page.filters, *(name for name, _ in page.sort)}
        if not self.who.is_admin and (secret := sorted(asked & set(of.admin_only))):
            raise BadRequest(f"{secret} is invalid attribute for filtering and sorting")
        rows, more = list_rows(self.db, of, visible, page)
        shown = select_fields(self.request, views(self.db, rows, self.who))
        if page.limit is None:
            return {key: shown}
        links = self._links([str(getattr(row, "id")) for row in rows], page, more)  # noqa: B009  # T has no id
        return {key: shown, f"{key}_links": links} if links else {key: shown}

    def _links(self, ids: list[str], page: Page, more: bool) -> list[Json]:
        if not ids:
            return []
        links = []
        if more or page.reverse:
            links.append({"rel": "next", "href": self._href(ids[-1], reverse=False)})
        if (more and page.reverse) or (page.marker is not None and not page.reverse):
            links.append({"rel": "previous", "href": self._href(ids[0], reverse=True)})
        return links

    def _href(self, marker: str, *, reverse: bool) -> str:
        kept = [
            (name, value)
            for name, value in self.request.query_params.multi_items()
            if name not in ("marker", "page_reverse")
        ]
        query = [*kept, ("marker", marker), *([("page_reverse", "True")] if reverse else [])]
        path = self.request.url.path
        return f"{self.cloud.settings.public_url.rstrip('/')}{path}?{urlencode(query)}"


async def _lister(request: Request, cloud: TheCloud, who: Reader, db: Db) -> Lister:
    return Lister(request, cloud, who, db)


TheLister = Annotated[Lister, Depends(_lister)]


def parse_page(request: Request) -> Page:
    """The list query of a request: everything that does not steer the list filters it."""
    params = request.query_params
    filters: dict[str, list[str]] = {}
    for name, value in params.multi_items():
        if name not in _CONTROLS:
            filters.setdefault(name, []).append(value)
    return Page(
        filters=filters,
        sort=_sort(params.getlist("sort_key"), params.getlist("sort_dir")),
        limit=_limit(params.get("limit")),
        marker=params.get("marker"),
        reverse=params.get("page_reverse", "").lower() in ("true", "1"),
    )


def _sort(keys: Sequence[str], directions: Sequence[str]) -> list[tuple[str, bool]]:
    if directions and len(keys) != len(directions):
        raise BadRequest("The number of sort_keys and sort_dirs must be same")
    for direction in directions:
        if direction not in ("asc", "desc"):
            raise BadRequest(
                f"'{direction:.20}' is invalid sort direction: asc or desc is expected"
            )
    padded = directions or ["asc"] * len(keys)
    return [(key, direction == "desc") for key, direction in zip(keys, padded, strict=True)]


def _limit(text: str | None) -> int | None:
    """The page size; 0 asks for no limit, as in Neutron."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(f"Limit must be an integer 0 or greater and not '{text:.40}'")
    return min(int(text), MAX_PAGE) or None


def view_of(shown: Mapping[str, Any], hidden: Collection[str], who: Caller) -> Json:
    """The view without what only admins see."""
    return {k: v for k, v in shown.items() if who.is_admin or k not in hidden}
