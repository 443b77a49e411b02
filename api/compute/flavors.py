"""Flavors, their extra specs, and who may use a non-public one."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from oslo_utils import strutils
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from sqlmodel import Session

from api.context import Db, allow
from api.fields import Boolean, Description, Name, NonNegative, Positive, Text
from api.history import checks_extra_specs, refuses_access_to_public_flavor
from api.microversion import Body, Route, View, since, until, versions
from api.paging import Link, Links, NextLinks, Order, Params, Sorted, TheLinks
from api.policy import Caller
from db.flavors import (
    SORT_COLUMNS,
    Flavor,
    FlavorAccess,
    FlavorFilter,
    access_of,
    add_flavor,
    find_access,
    get_flavor_for,
    list_flavors,
)
from db.quotas import project_exists
from db.session import insert_unique
from domain.errors import BadRequest, Conflict, NotFound
from domain.flavor import KEY, MAX_VALUE, check_extra_spec
from domain.ids import new_id

router = APIRouter(prefix="/v2.1/flavors", route_class=Route)
Reader = Annotated[Caller, allow("flavors:read")]
Writer = Annotated[Caller, allow("flavors:write")]
Granter = Annotated[Caller, allow("flavors:access")]
FlavorId = Annotated[str, Path(max_length=255)]


# --- bodies


def _flavor_id(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value}"
    if value is not None and (
        not isinstance(value, str) or not re.fullmatch(r"(?! )[a-zA-Z0-9. _-]{1,255}(?<! )", value)
    ):
        raise PydanticCustomError("flavor_id", "It does not match '^(?! )[a-zA-Z0-9. _-]+(?<! )$'")
    return value


def _factor(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,39}(\.[0-9]+)?", value, re.ASCII):
        return float(value)
    if isinstance(value, bool | str):
        raise PydanticCustomError("rxtx_factor", "It is not a number.")
    return value


def _spec_key(key: str) -> str:
    if not KEY.fullmatch(key):
        raise PydanticCustomError(
            "extra_spec",
            "Additional properties are not allowed ('{key}' does not match '^[a-zA-Z0-9-_:. ]+$')",
            {"key": key[:80]},
        )
    return key


def _spec_value(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > MAX_VALUE:
        raise PydanticCustomError(
            "extra_spec", "An extra spec is a string of at most 255 characters, or a number."
        )
    return value


ExtraSpecs = dict[
    Annotated[str, AfterValidator(_spec_key)], Annotated[Text, BeforeValidator(_spec_value)]
]
Project = Annotated[Text, Field(min_length=1, max_length=255)]


class NewFlavor(Body):
    name: Name
    id: Annotated[str | None, BeforeValidator(_flavor_id)] = None
    ram: Positive
    vcpus: Positive
    disk: NonNegative
    ephemeral: Annotated[NonNegative, Field(alias="OS-FLV-EXT-DATA:ephemeral")] = 0
    swap: NonNegative = 0
    rxtx_factor: Annotated[float, BeforeValidator(_factor), Field(gt=0, le=3.40282e38)] = 1.0
    is_public: Annotated[Boolean, Field(alias="os-flavor-access:is_public")] = True
    description: Annotated[Description | None, since("2.55")] = None


class CreateFlavor(Body):
    flavor: NewFlavor


class NewDescription(Body):
    description: Description | None


class UpdateFlavor(Body):
    flavor: NewDescription


class CreateExtraSpecs(Body):
    extra_specs: ExtraSpecs


class Tenant(Body):
    tenant: Project


class FlavorAction(Body):
    add: Annotated[Tenant | None, Field(alias="addTenantAccess")] = None
    remove: Annotated[Tenant | None, Field(alias="removeTenantAccess")] = None


class ListFlavors(Sorted):
    is_public: str | None = None
    min_ram: Annotated[str | None, Field(alias="minRam")] = None
    min_disk: Annotated[str | None, Field(alias="minDisk")] = None


# --- views


class FlavorBrief(View):
    id: str
    name: str
    links: list[Link]
    description: Annotated[str | None, since("2.55")] = None


class FlavorView(FlavorBrief):
    ram: int
    disk: int
    swap_or_nothing: Annotated[int | Literal[""], until("2.74"), Field(serialization_alias="swap")]
    swap: Annotated[int, since("2.75")]
    ephemeral: Annotated[int, Field(alias="OS-FLV-EXT-DATA:ephemeral")]
    disabled: Annotated[bool, Field(alias="OS-FLV-DISABLED:disabled")]
    vcpus: int
    is_public: Annotated[bool, Field(alias="os-flavor-access:is_public")]
    rxtx_factor: float
    extra_specs: Annotated[dict[str, str], since("2.61")]


class FlavorEnvelope(View):
    flavor: FlavorView


class FlavorList(View):
    flavors: list[FlavorBrief]
    flavors_links: NextLinks = None


class FlavorDetails(View):
    flavors: list[FlavorView]
    flavors_links: NextLinks = None


class AccessEntry(View):
    flavor_id: str
    tenant_id: str


class AccessList(View):
    flavor_access: list[AccessEntry]


def _brief(flavor: Flavor, links: Links) -> FlavorBrief:
    return FlavorBrief(
        id=flavor.flavor_id,
        name=flavor.name,
        links=links.of("flavors", flavor.flavor_id),
        description=flavor.description,
    )


def _show(flavor: Flavor, links: Links) -> FlavorView:
    return FlavorView(
        id=flavor.flavor_id,
        name=flavor.name,
        links=links.of("flavors", flavor.flavor_id),
        description=flavor.description,
        ram=flavor.ram_mb,
        disk=flavor.disk_gb,
        swap_or_nothing=flavor.swap_mb or "",
        swap=flavor.swap_mb,
        ephemeral=flavor.ephemeral_gb,
        disabled=flavor.disabled,
        vcpus=flavor.vcpus,
        is_public=flavor.is_public,
        rxtx_factor=flavor.rxtx_factor,
        extra_specs=flavor.extra_specs,
    )


# --- flavors


def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text, re.ASCII):
        raise BadRequest(f"Invalid {name} filter [{text}]")
    return int(text)


def _wanted_kind(text: str | None) -> bool | None:
    if text is None:
        return True
    if text.strip().lower() == "none":
        return None
    try:
        return bool(strutils.bool_from_string(text, strict=True))
    except ValueError as error:
        raise BadRequest(f"Invalid is_public filter [{text}]") from error


def _page(db: Session, query: ListFlavors, who: Caller) -> list[Flavor]:
    wanted = FlavorFilter(
        project_id=who.project_id,
        is_admin=who.is_admin,
        is_public=_wanted_kind(query.is_public) if who.is_admin else True,
        min_ram_mb=_number("minRam", query.min_ram),
        min_disk_gb=_number("minDisk", query.min_disk),
    )
    order = query.order(SORT_COLUMNS, [Order("flavorid", False)])
    return list_flavors(db, wanted, order, query.page_size, query.marker)


@router.get("")
def index(
    query: Annotated[ListFlavors, Query()], who: Reader, db: Db, links: TheLinks
) -> FlavorList:
    page = _page(db, query, who)
    return FlavorList(
        flavors=[_brief(f, links) for f in page],
        flavors_links=links.next("flavors", query, [f.flavor_id for f in page]),
    )


@router.get("/detail")
def detail(
    query: Annotated[ListFlavors, Query()], who: Reader, db: Db, links: TheLinks
) -> FlavorDetails:
    page = _page(db, query, who)
    return FlavorDetails(
        flavors=[_show(f, links) for f in page],
        flavors_links=links.next("flavors/detail", query, [f.flavor_id for f in page]),
    )


@router.post("")
def create(body: CreateFlavor, who: Writer, db: Db, links: TheLinks) -> FlavorEnvelope:
    asked = body.flavor
    flavor = Flavor(
        flavor_id=asked.id or new_id(),
        name=asked.name,
        description=asked.description,
        vcpus=asked.vcpus,
        ram_mb=asked.ram,
        disk_gb=asked.disk,
        ephemeral_gb=asked.ephemeral,
        swap_mb=asked.swap,
        rxtx_factor=asked.rxtx_factor,
        is_public=asked.is_public,
    )
    add_flavor(db, flavor)
    return FlavorEnvelope(flavor=_show(flavor, links))


@router.get("/{flavor_id}")
def show(
    flavor_id: FlavorId, query: Annotated[Params, Query()], who: Reader, db: Db, links: TheLinks
) -> FlavorEnvelope:
    return FlavorEnvelope(flavor=_show(_find(db, flavor_id, who), links))


@router.put("/{flavor_id}")
@versions("2.55")
def update(
    flavor_id: FlavorId, body: UpdateFlavor, who: Writer, db: Db, links: TheLinks
) -> FlavorEnvelope:
    flavor = _find(db, flavor_id, who)
    flavor.description = body.flavor.description
    db.add(flavor)
    return FlavorEnvelope(flavor=_show(flavor, links))


@router.delete("/{flavor_id}", status_code=202, response_class=Response)
def delete(flavor_id: FlavorId, who: Writer, db: Db) -> None:
    db.delete(_find(db, flavor_id, who))


def _find(db: Session, flavor_id: str, who: Caller) -> Flavor:
    return get_flavor_for(db, flavor_id, who.project_id, who.is_admin)


# --- access


def _access(db: Session, flavor: Flavor) -> AccessList:
    return AccessList(
        flavor_access=[
            AccessEntry(flavor_id=flavor.flavor_id, tenant_id=project)
            for project in access_of(db, flavor)
        ]
    )


@router.get("/{flavor_id}/os-flavor-access")
def list_access(flavor_id: FlavorId, who: Granter, db: Db) -> AccessList:
    flavor = _find(db, flavor_id, who)
    if flavor.is_public:
        raise NotFound("Access list not available for public flavors.")
    return _access(db, flavor)


@router.post("/{flavor_id}/action")
def act(flavor_id: FlavorId, body: FlavorAction, who: Granter, db: Db) -> AccessList:
    if (body.add is None) == (body.remove is None):
        raise BadRequest("There is no such action, or more than one in the body.")
    if body.add is not None:
        return _add_access(db, _find(db, flavor_id, who), body.add.tenant)
    assert body.remove is not None  # noqa: S101  # the check above leaves nothing else
    return _remove_access(db, _find(db, flavor_id, who), body.remove.tenant)


def _add_access(db: Session, flavor: Flavor, project_id: str) -> AccessList:
    if not project_exists(db, project_id):
        raise BadRequest(f"Project ID {project_id} is not a valid project.")
    if flavor.is_public and refuses_access_to_public_flavor():
        raise Conflict("Can not add access to a public flavor.")
    clash = f"Flavor access already exists for flavor {flavor.flavor_id} and project {project_id} combination."
    insert_unique(db, FlavorAccess(flavor_row_id=flavor.id, project_id=project_id), clash)
    return _access(db, flavor)


def _remove_access(db: Session, flavor: Flavor, project_id: str) -> AccessList:
    entry = find_access(db, flavor, project_id)
    if entry is None:
        raise NotFound(
            f"Flavor access not found for {flavor.flavor_id} / {project_id} combination."
        )
    db.delete(entry)
    db.flush()
    return _access(db, flavor)


# --- extra specs


def _check_specs(specs: dict[str, str]) -> None:
    if checks_extra_specs():
        for key, value in specs.items():
            check_extra_spec(key, value)


def _spec(flavor: Flavor, key: str) -> str:
    if key not in flavor.extra_specs:
        raise NotFound(f"Flavor {flavor.flavor_id} has no extra specs with key {key}.")
    return flavor.extra_specs[key]


@router.get("/{flavor_id}/os-extra_specs")
def list_specs(flavor_id: FlavorId, who: Reader, db: Db) -> dict[str, dict[str, str]]:
    return {"extra_specs": _find(db, flavor_id, who).extra_specs}


@router.post("/{flavor_id}/os-extra_specs")
def create_specs(
    flavor_id: FlavorId, body: CreateExtraSpecs, who: Writer, db: Db
) -> dict[str, dict[str, str]]:
    _check_specs(body.extra_specs)
    flavor = _find(db, flavor_id, who)
    flavor.extra_specs = {**flavor.extra_specs, **body.extra_specs}
    db.add(flavor)
    return {"extra_specs": body.extra_specs}


@router.get("/{flavor_id}/os-extra_specs/{key}")
def show_spec(flavor_id: FlavorId, key: str, who: Reader, db: Db) -> dict[str, str]:
    return {key: _spec(_find(db, flavor_id, who), key)}


@router.put("/{flavor_id}/os-extra_specs/{key}")
def update_spec(
    flavor_id: FlavorId,
    key: str,
    body: Annotated[ExtraSpecs, Field(min_length=1, max_length=1)],
    who: Writer,
    db: Db,
) -> dict[str, str]:
    _check_specs(body)
    if key not in body:
        raise BadRequest("Request body and URI mismatch")
    flavor = _find(db, flavor_id, who)
    flavor.extra_specs = {**flavor.extra_specs, **body}
    db.add(flavor)
    return body


@router.delete("/{flavor_id}/os-extra_specs/{key}", response_class=Response)
def delete_spec(flavor_id: FlavorId, key: str, who: Writer, db: Db) -> None:
    flavor = _find(db, flavor_id, who)
    _spec(flavor, key)
    flavor.extra_specs = {k: v for k, v in flavor.extra_specs.items() if k != key}
    db.add(flavor)
