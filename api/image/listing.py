"""The query string of ``GET /v2/images``: filters, sorting, paging, and the links of a page."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from db.images import OPERATORS, ImageFilters
from domain.errors import BadRequest

DEFAULT_LIMIT = 25
MAX_LIMIT = 1000
MAX_INT = 2**63 - 1
VISIBILITIES = ("public", "community", "shared", "private")
MEMBER_STATUSES = ("pending", "accepted", "rejected")
SORT_KEYS = (
    "name",
    "status",
    "container_format",
    "disk_format",
    "size",
    "id",
    "created_at",
    "updated_at",
)
STATUSES = ("queued", "saving", "active", "deactivated", "killed", "deleted")
_LISTABLE = ("id", "name", "status", "container_format", "disk_format")
_COLUMNS = {
    "owner": "project_id",
    "checksum": "checksum",
    "os_hash_value": "sha512",
    "os_hidden": "hidden",
    "protected": "protected",
    "min_disk": "min_disk",
    "min_ram": "min_ram",
    "size": "size",
    "virtual_size": "virtual_size",
} | {name: name for name in _LISTABLE}
_NUMBERS = {"min_disk", "min_ram", "size", "virtual_size"}
_BOOLEANS = {"os_hidden", "protected"}
_FIXED = {"os_hash_algo": "sha512"}
"""Attributes that are the same for all images with data."""
_OWN_MEANING = {"limit", "marker", "sort", "sort_key", "sort_dir", "tag", "visibility"} | {
    "member_status",
    "size_min",
    "size_max",
    "created_at",
    "updated_at",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """One parsed query."""

    filters: ImageFilters
    order: list[tuple[str, bool]]
    limit: int
    marker: str | None
    given: Sequence[tuple[str, str]]
    """The parameters as they came, for links."""

    def links(self, ids: Sequence[str]) -> dict[str, str]:
        """``first``, ``schema`` and, when the page is full, ``next``: paths as Glance writes them."""
        kept = [(k, v) for k, v in self.given if k != "marker"]
        links = {"first": _path(kept), "schema": "/v2/schemas/images"}
        if ids and len(ids) == self.limit:
            links["next"] = _path([*kept, ("marker", ids[-1])])
        return links


def parse(given: Sequence[tuple[str, str]]) -> Listing:
    """Understand a query string; BadRequest for what cannot be."""
    for name, value in given:
        if "\x00" in name or "\x00" in value:
            raise BadRequest("Query parameters may not hold NUL characters.")
    single = dict(given)
    return Listing(
        filters=_filters(given, single),
        order=_order(given, single),
        limit=min(_number("limit", single.get("limit", str(DEFAULT_LIMIT))), MAX_LIMIT),
        marker=single.get("marker"),
        given=given,
    )


def _filters(given: Sequence[tuple[str, str]], single: dict[str, str]) -> ImageFilters:
    among: dict[str, Sequence[Any]] = {"hidden": (False,)}
    properties = {}
    for name, value in single.items():
        if name in _COLUMNS:
            among[_COLUMNS[name]] = _accepted(name, value)
        elif name in _FIXED:
            if value != _FIXED[name]:
                among["id"] = ()
        elif name not in _OWN_MEANING:
            properties[name] = value
    return ImageFilters(
        among=among,
        visibility=_one_of("visibility", single, (*VISIBILITIES, "all"), None),
        member_status=_one_of("member_status", single, (*MEMBER_STATUSES, "all"), "accepted")
        or "accepted",
        tags=[value for name, value in given if name == "tag"],
        size_min=_number("size_min", single["size_min"]) if "size_min" in single else None,
        size_max=_number("size_max", single["size_max"]) if "size_max" in single else None,
        instants=[_instant(k, v) for k, v in given if k in ("created_at", "updated_at")],
        properties=properties,
    )


def _accepted(name: str, value: str) -> Sequence[Any]:
    if name in _NUMBERS:
        return (_number(name, value),)
    if name in _BOOLEANS:
        if value.lower() not in ("true", "false", "1", "0"):
            raise BadRequest(f"Invalid value '{value:.80}' for filter {name}: a boolean is needed.")
        return (value.lower() in ("true", "1"),)
    values = [value]
    if name in _LISTABLE and value.startswith("in:"):
        values = _split(value.removeprefix("in:"))
    if name == "status":
        unknown = [v for v in values if v not in STATUSES]
        if unknown:
            raise BadRequest(f"Invalid status value: {unknown[0]:.80}")
    return values


def _split(text: str) -> list[str]:
    """``a,"b,c"`` → a and b,c."""
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise BadRequest(f"Invalid filter value {text:.80}: {error}.") from None


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII) or int(value) > MAX_INT:
        raise BadRequest(f"Invalid value '{value:.80}' for {name}: a whole number is needed.")
    return int(value)


def _one_of(
    name: str, single: dict[str, str], allowed: tuple[str, ...], default: str | None
) -> str | None:
    value = single.get(name, default)
    if value is not None and value not in allowed:
        raise BadRequest(f"Invalid {name} value: {value:.80}. Allowed: {', '.join(allowed)}.")
    return value


def _instant(name: str, value: str) -> tuple[str, str, datetime]:
    """``gte:2026-01-01T00:00:00Z``; without an operator it is eq."""
    op, colon, text = value.partition(":")
    if not colon or op not in OPERATORS:
        op, text = "eq", value
    try:
        when = datetime.fromisoformat(text)
        return name, op, when if when.tzinfo else when.replace(tzinfo=UTC)
    except ValueError:
        raise BadRequest(f"Invalid time '{value:.80}' for {name}.") from None


def _order(given: Sequence[tuple[str, str]], single: dict[str, str]) -> list[tuple[str, bool]]:
    """``sort=name:asc,size`` or repeated ``sort_key`` and ``sort_dir``; desc unless told."""
    keys = [value for name, value in given if name == "sort_key"]
    directions = [value for name, value in given if name == "sort_dir"]
    if "sort" in single:
        if keys or directions:
            raise BadRequest("Old and new sorting syntax cannot be combined")
        pairs = [item.strip().partition(":") for item in single["sort"].split(",")]
        keys, directions = [k for k, _, _ in pairs], [d or "desc" for _, _, d in pairs]
    keys = keys or ["created_at"]
    if len(directions) > len(keys):
        raise BadRequest("Number of sort dirs does not match the number of sort keys")
    directions += [directions[0] if directions else "desc"] * (len(keys) - len(directions))
    for key, direction in zip(keys, directions, strict=True):
        if key not in SORT_KEYS:
            raise BadRequest(
                f"Invalid sort key: {key:.80}. It must be one of {', '.join(SORT_KEYS)}."
            )
        if direction not in ("asc", "desc"):
            raise BadRequest(f"Invalid sort direction: {direction:.80}")
    return list({k: d == "desc" for k, d in zip(keys, directions, strict=True)}.items())


def _path(parameters: Sequence[tuple[str, str]]) -> str:
    return f"/v2/images?{urlencode(parameters)}" if parameters else "/v2/images"
