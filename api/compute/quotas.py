"""Quotas of projects, users and the default class; and the limits a project reads for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Generic, TypeVar

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field
from sqlmodel import Session

from api.context import Db, TheCloud, allow
from api.fields import Boolean, Limit
from api.microversion import Body, Route, View, since, until
from api.paging import Params
from api.policy import Caller
from db.quotas import (
    class_limits,
    forget_limits,
    given_to_users,
    limits_of,
    project_exists,
    set_class_limit,
    set_limit,
    usage_of,
)
from domain.errors import BadRequest, Forbidden
from domain.quota import RESOURCES, UNLIMITED, refuse_limit

router = APIRouter(prefix="/v2.1", route_class=Route)
Reader = Annotated[Caller, allow("quotas:read")]
Writer = Annotated[Caller, allow("quotas:write")]
ProjectId = Annotated[str, Path(max_length=36)]
ClassName = Annotated[str, Path(min_length=1, max_length=255)]
T = TypeVar("T")

_NETWORK = ("fixed_ips", "floating_ips", "security_groups", "security_group_rules")
_FILES = ("injected_files", "injected_file_content_bytes", "injected_file_path_bytes")
_LEGACY = dict.fromkeys(_NETWORK, UNLIMITED) | dict.fromkeys(_FILES, 0)
"""Resources of old versions: addresses belong to the network service, files are not injected. What an
old client sets is kept and shown, and limits nothing."""
_ALL = (*RESOURCES, *_LEGACY)


# --- bodies: a limit that is not sent stays as it is


class NewLimits(Body):
    instances: Limit = 0
    cores: Limit = 0
    ram: Limit = 0
    metadata_items: Limit = 0
    key_pairs: Limit = 0
    injected_files: Annotated[Limit, until("2.56")] = 0
    injected_file_content_bytes: Annotated[Limit, until("2.56")] = 0
    injected_file_path_bytes: Annotated[Limit, until("2.56")] = 0

    def given(self) -> dict[str, int]:
        """The limits that were sent."""
        sent = self.model_fields_set & set(_ALL)
        return {name: getattr(self, name) for name in _ALL if name in sent}


class NewQuota(NewLimits):
    server_groups: Limit = 0
    server_group_members: Limit = 0
    fixed_ips: Annotated[Limit, until("2.35")] = 0
    floating_ips: Annotated[Limit, until("2.35")] = 0
    security_groups: Annotated[Limit, until("2.35")] = 0
    security_group_rules: Annotated[Limit, until("2.35")] = 0
    force: Boolean = False


class NewClassQuota(NewLimits):
    server_groups: Annotated[Limit, since("2.50")] = 0
    server_group_members: Annotated[Limit, since("2.50")] = 0
    fixed_ips: Annotated[Limit, until("2.49")] = 0
    floating_ips: Annotated[Limit, until("2.49")] = 0
    security_groups: Annotated[Limit, until("2.49")] = 0
    security_group_rules: Annotated[Limit, until("2.49")] = 0


class UpdateQuota(Body):
    quota_set: NewQuota


class UpdateClassQuota(Body):
    quota_class_set: NewClassQuota


class OfUser(Params):
    user_id: Annotated[str | None, Field(max_length=36)] = None


class LimitsQuery(Params):
    reserved: str | None = None
    tenant_id: Annotated[str | None, Field(max_length=36)] = None


# --- views


class Quotas(View, Generic[T]):
    """One value per resource: a limit, or a limit with its usage."""

    id: Annotated[str | None, Field(exclude_if=lambda shown: shown is None)] = None
    instances: T
    cores: T
    ram: T
    metadata_items: T
    key_pairs: T
    injected_files: Annotated[T, until("2.56")]
    injected_file_content_bytes: Annotated[T, until("2.56")]
    injected_file_path_bytes: Annotated[T, until("2.56")]


class ProjectQuotas(Quotas[T], Generic[T]):
    server_groups: T
    server_group_members: T
    fixed_ips: Annotated[T, until("2.35")]
    floating_ips: Annotated[T, until("2.35")]
    security_groups: Annotated[T, until("2.35")]
    security_group_rules: Annotated[T, until("2.35")]


class ClassQuotas(Quotas[int]):
    server_groups: Annotated[int, since("2.50")]
    server_group_members: Annotated[int, since("2.50")]
    fixed_ips: Annotated[int, until("2.49")]
    floating_ips: Annotated[int, until("2.49")]
    security_groups: Annotated[int, until("2.49")]
    security_group_rules: Annotated[int, until("2.49")]


class Usage(View):
    limit: int
    in_use: int = 0
    reserved: int = 0


class QuotaSet(View):
    quota_set: ProjectQuotas[int]


class QuotaSetDetail(View):
    quota_set: ProjectQuotas[Usage]


class QuotaClassSet(View):
    quota_class_set: ClassQuotas


class Absolute(View):
    """Nova's names; ram in MB."""

    instances: Annotated[int, Field(serialization_alias="maxTotalInstances")]
    cores: Annotated[int, Field(serialization_alias="maxTotalCores")]
    ram: Annotated[int, Field(serialization_alias="maxTotalRAMSize")]
    key_pairs: Annotated[int, Field(serialization_alias="maxTotalKeypairs")]
    metadata_items: Annotated[int, Field(serialization_alias="maxServerMeta")]
    server_groups: Annotated[int, Field(serialization_alias="maxServerGroups")]
    server_group_members: Annotated[int, Field(serialization_alias="maxServerGroupMembers")]
    image_meta: Annotated[int, until("2.38"), Field(serialization_alias="maxImageMeta")]
    injected_files: Annotated[int, until("2.56"), Field(serialization_alias="maxPersonality")]
    injected_file_content_bytes: Annotated[
        int, until("2.56"), Field(serialization_alias="maxPersonalitySize")
    ]
    floating_ips: Annotated[int, until("2.35"), Field(serialization_alias="maxTotalFloatingIps")]
    security_groups: Annotated[int, until("2.35"), Field(serialization_alias="maxSecurityGroups")]
    security_group_rules: Annotated[
        int, until("2.35"), Field(serialization_alias="maxSecurityGroupRules")
    ]
    used_instances: Annotated[int, Field(serialization_alias="totalInstancesUsed")]
    used_cores: Annotated[int, Field(serialization_alias="totalCoresUsed")]
    used_ram: Annotated[int, Field(serialization_alias="totalRAMUsed")]
    used_server_groups: Annotated[int, Field(serialization_alias="totalServerGroupsUsed")]
    used_floating_ips: Annotated[
        int, until("2.35"), Field(serialization_alias="totalFloatingIpsUsed")
    ] = 0
    used_security_groups: Annotated[
        int, until("2.35"), Field(serialization_alias="totalSecurityGroupsUsed")
    ] = 0


class LimitsBody(View):
    rate: tuple[str, ...] = ()
    """There are no rate limits."""
    absolute: Absolute


class LimitsEnvelope(View):
    limits: LimitsBody


# --- quota sets


def _check_reach(who: Caller, project_id: str, verb: str) -> None:
    """Others than admins see their own project only."""
    if project_id != who.project_id and not who.is_admin:
        raise Forbidden(f"Policy doesn't allow os_compute_api:{verb} to be performed.")


def _check_project(db: Session, who: Caller, project_id: str) -> None:
    if project_id != who.project_id and not project_exists(db, project_id):
        raise BadRequest(f"Project ID {project_id} is not a valid project.")


def _defaults(cloud: TheCloud) -> dict[str, int]:
    return cloud.settings.quota_defaults | _LEGACY


def _quota_set(project_id: str | None, limits: Mapping[str, int]) -> QuotaSet:
    return QuotaSet(quota_set=ProjectQuotas[int](id=project_id, **limits))


@router.get("/os-quota-sets/{project_id}")
def show(
    project_id: ProjectId, query: Annotated[OfUser, Query()], who: Reader, db: Db, cloud: TheCloud
) -> QuotaSet:
    _check_reach(who, project_id, "os-quota-sets:show")
    _check_project(db, who, project_id)
    limits = limits_of(db, project_id, _defaults(cloud), query.user_id or "")
    return _quota_set(project_id, limits)


@router.get("/os-quota-sets/{project_id}/defaults")
def defaults(project_id: ProjectId, who: Reader, db: Db, cloud: TheCloud) -> QuotaSet:
    _check_project(db, who, project_id)
    return _quota_set(project_id, class_limits(db, "default", _defaults(cloud)))


@router.get("/os-quota-sets/{project_id}/detail")
def detail(
    project_id: ProjectId, query: Annotated[OfUser, Query()], who: Reader, db: Db, cloud: TheCloud
) -> QuotaSetDetail:
    _check_reach(who, project_id, "os-quota-sets:detail")
    _check_project(db, who, project_id)
    user_id = query.user_id or ""
    limits = limits_of(db, project_id, _defaults(cloud), user_id)
    used = usage_of(db, project_id, user_id)
    return QuotaSetDetail(
        quota_set=ProjectQuotas[Usage](
            id=project_id,
            **{name: Usage(limit=limits[name], in_use=used.get(name, 0)) for name in limits},
        )
    )


@router.put("/os-quota-sets/{project_id}")
def update(
    project_id: ProjectId,
    body: UpdateQuota,
    query: Annotated[OfUser, Query()],
    who: Writer,
    db: Db,
    cloud: TheCloud,
) -> QuotaSet:
    _check_project(db, who, project_id)
    user_id = query.user_id or ""
    asked = body.quota_set.given()
    if not body.quota_set.force:
        _check_limits(db, project_id, user_id, asked, _defaults(cloud))
    for resource, limit in asked.items():
        set_limit(db, project_id, resource, limit, user_id)
    return _quota_set(None, limits_of(db, project_id, _defaults(cloud), user_id))


def _check_limits(
    db: Session, project_id: str, user_id: str, asked: dict[str, int], defaults: dict[str, int]
) -> None:
    """A project's limit covers what is used and what its users were given; a user's covers what that
    user has and stays within what the others leave of the project's."""
    used = usage_of(db, project_id, user_id)
    whole = limits_of(db, project_id, defaults)
    given = given_to_users(db, project_id, but_not=user_id)
    for resource, limit in asked.items():
        minimum, maximum = used.get(resource, 0), UNLIMITED
        if not user_id:
            minimum = max(minimum, given.get(resource, 0))
        elif whole[resource] != UNLIMITED:
            maximum = max(whole[resource] - given.get(resource, 0), 0)
        if reason := refuse_limit(resource, limit, minimum, maximum):
            raise BadRequest(reason)


@router.delete("/os-quota-sets/{project_id}", status_code=202, response_class=Response)
def delete(project_id: ProjectId, query: Annotated[OfUser, Query()], who: Writer, db: Db) -> None:
    forget_limits(db, project_id, _ALL, query.user_id or "")


# --- quota classes


def _class_set(
    db: Session, name: str, shown_id: str | None, defaults: dict[str, int]
) -> QuotaClassSet:
    limits = class_limits(db, name, defaults)
    return QuotaClassSet(quota_class_set=ClassQuotas(id=shown_id, **limits))


@router.get("/os-quota-class-sets/{name}")
def show_class(name: ClassName, who: Writer, db: Db, cloud: TheCloud) -> QuotaClassSet:
    return _class_set(db, name, name, _defaults(cloud))


@router.put("/os-quota-class-sets/{name}")
def update_class(
    name: ClassName, body: UpdateClassQuota, who: Writer, db: Db, cloud: TheCloud
) -> QuotaClassSet:
    for resource, limit in body.quota_class_set.given().items():
        set_class_limit(db, name, resource, limit)
    return _class_set(db, name, None, _defaults(cloud))


# --- limits


@router.get("/limits")
def limits(
    query: Annotated[LimitsQuery, Query()],
    who: Annotated[Caller, allow("limits")],
    db: Db,
    cloud: TheCloud,
) -> LimitsEnvelope:
    project_id = who.project_id if query.tenant_id is None else query.tenant_id
    _check_reach(who, project_id, "limits:other_project")
    limits = limits_of(db, project_id, _defaults(cloud))
    shown = {name: limit for name, limit in limits.items() if name in Absolute.model_fields}
    used = {f"used_{name}": amount for name, amount in usage_of(db, project_id).items()}
    absolute = Absolute(image_meta=limits["metadata_items"], **shown, **used)
    return LimitsEnvelope(limits=LimitsBody(absolute=absolute))
