"""Query strings of lists: marker, limit, sort; and the links a list and its items carry.

class ListFlavors(Sorted):              # one class per list: its fields are the parameters it knows
    is_public: str | None = None

def list_flavors(query: Annotated[ListFlavors, Query()], ...): ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple
from urllib.parse import urlencode

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from api.context import TheCloud
from api.history import refuses_unknown_query
from api.microversion import Span, current
from domain.errors import BadRequest

MAX_LIMIT = 1000
"""Nova's ``max_limit``: the longest page, and the page of those who do not ask."""


class Params(BaseModel):
    """Base of every compute query string.

    A parameter outside its version is an unknown one; unknown ones are ignored by old versions and
    refused with 400 by new ones.
    """

    model_config = ConfigDict(extra="ignore", populate_by_name=True)
    _known: ClassVar[dict[str, tuple[Span, ...]]] = {}
    _refuses_unknown: ClassVar[Callable[[], bool]] = refuses_unknown_query

    @classmethod
    def __pydantic_on_complete__(cls) -> None:
        cls._known = {
            field.alias or name: tuple(m for m in field.metadata if isinstance(m, Span))
            for name, field in cls.model_fields.items()
        }

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        now = current()
        known = {
            name: data[name]
            for name, spans in cls._known.items()
            if name in data and (not spans or any(now in span for span in spans))
        }
        unknown = sorted(data.keys() - known.keys())
        if unknown and cls._refuses_unknown():
            raise PydanticCustomError(
                "extra_forbidden",
                "Additional properties are not allowed ('{key}' was unexpected)",
                {"key": unknown[0]},
            )
        return known


class Paged(Params):
    """``limit`` and ``marker``."""

    limit: int | None = Field(default=None, ge=0)
    marker: str | None = None

    @property
    def page_size(self) -> int:
        """How many rows the page may hold: what was asked, at most MAX_LIMIT; 0 is an empty page."""
        return MAX_LIMIT if self.limit is None else min(self.limit, MAX_LIMIT)


class Order(NamedTuple):
    """One sort criterion, by the API's name of the key."""

    key: str
    descending: bool


class Sorted(Paged):
    """``limit``, ``marker``, and repeated ``sort_key`` and ``sort_dir``."""

    sort_key: list[str] = Field(default_factory=list)
    sort_dir: list[str] = Field(default_factory=list)

    def order(self, allowed: Collection[str], default: Sequence[Order]) -> list[Order]:
        """The asked order, or ``default``; BadRequest for a key that is not ``allowed``, another
        direction than asc and desc, or more directions than keys. A key without a direction takes the
        first one given, as in Nova. The caller appends its unique tie-breaker."""
        for key in self.sort_key:
            if key not in allowed:
                raise BadRequest(f"Invalid input for query parameters sort_key. Value: {key}.")
        for direction in self.sort_dir:
            if direction not in ("asc", "desc"):
                raise BadRequest("Unknown sort direction, must be 'desc' or 'asc'")
        if not self.sort_key:
            if not self.sort_dir:
                return list(default)
            return [Order(o.key, self.sort_dir[0] == "desc") for o in default]
        if len(self.sort_dir) > len(self.sort_key):
            raise BadRequest("Sort direction size exceeds sort key size")
        first = self.sort_dir[0] if self.sort_dir else "asc"
        directions = self.sort_dir + [first] * (len(self.sort_key) - len(self.sort_dir))
        return [Order(k, d == "desc") for k, d in zip(self.sort_key, directions, strict=True)]


class Link(TypedDict):
    """One hyperlink."""

    rel: str
    href: str


NextLinks = Annotated[list[Link] | None, Field(exclude_if=lambda links: links is None)]
"""The type of a ``<collection>_links`` field: left out when there is no next page."""


class Links:
    """Builds the compute API's absolute URLs for one request."""

    def __init__(self, request: Request, cloud: TheCloud) -> None:
        self._request = request
        self._bare = f"{cloud.settings.public_url.rstrip('/')}/compute"
        self.root = f"{self._bare}/v2.1"

    def href(self, *path: str) -> str:
        """The versioned URL of a resource, e.g. ``href("servers", id)``."""
        return "/".join((self.root, *path))

    def bookmark(self, *path: str) -> Link:
        """The permanent, version-less link."""
        return Link(rel="bookmark", href="/".join((self._bare, *path)))

    def of(self, *path: str) -> list[Link]:
        """``self`` and ``bookmark``, as most items carry them."""
        return [Link(rel="self", href=self.href(*path)), self.bookmark(*path)]

    def next(self, collection: str, page: Paged, ids: Sequence[str]) -> list[Link] | None:
        """The ``<collection>_links`` of a page whose last id is ``ids[-1]``: a ``next`` link when the
        page is full, else None (the key is then left out). ``collection`` is the path, such as
        ``servers`` or ``servers/detail``."""
        if not ids or len(ids) < page.page_size:
            return None
        kept = [(k, v) for k, v in self._request.query_params.multi_items() if k != "marker"]
        query = urlencode([*kept, ("marker", ids[-1])])
        return [Link(rel="next", href=f"{self.href(collection)}?{query}")]


async def _links(request: Request, cloud: TheCloud) -> Links:
    return Links(request, cloud)


TheLinks = Annotated[Links, Depends(_links)]
