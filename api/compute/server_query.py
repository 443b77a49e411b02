"""The query string of the server lists: which filters exist, for whom, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import re2
from oslo_utils import strutils
from oslo_utils.timeutils import parse_isotime
from pydantic import AfterValidator, Field
from sqlmodel import Session

from api.fields import Boolean, NonNegative, Text
from api.history import (
    filters_by_ip6_for_all,
    filters_servers_freely,
    refuses_unknown_status,
    sorts_by_locked,
)
from api.microversion import since
from api.paging import Order, Sorted
from api.policy import Caller, authorize
from db.server_list import SORT_COLUMNS, Page, ServerFilter, hosts_in_zone
from db.session import compile_pattern
from domain.errors import BadRequest, Forbidden
from domain.states import VmState, vm_states_of
from runtime.settings import Settings

_TAGS_MAX = 50
_DEFAULT_ORDER = (Order("created_at", descending=True),)
_ADMIN_SORTS = frozenset({"host", "node"})
_IGNORED_SORTS = frozenset({"instance_type_id", "kernel_id", "ramdisk_id", "root_device_name"})
"""Keys that old clients may send; all servers are alike in them."""
_FOR_ADMIN = frozenset(
    {"created_at", "deleted", "description", "host", "hostname", "launch_index", "node", "uuid"}
)
_FOR_ALL_LATER = frozenset(
    {
        "availability_zone",
        "config_drive",
        "created_at",
        "key_name",
        "launched_at",
        "power_state",
        "progress",
        "task_state",
        "terminated_at",
        "user_id",
        "vm_state",
    }
)


def instant(text: str) -> datetime:
    """A query parameter that is an ISO 8601 instant."""
    try:
        moment: datetime = parse_isotime(text)
    except ValueError:
        raise ValueError(f"'{text:.64}' is not a valid time") from None
    return moment


def check_span(since: Any, before: Any) -> None:
    """BadRequest when a list is asked for changes since a moment that lies after their end."""
    if since is not None and before is not None and since > before:
        raise BadRequest("The value of changes-since must be less than or equal to changes-before.")


def _lenient_bool(text: str) -> bool:
    return bool(strutils.bool_from_string(text, default=False))


def _pattern(text: str) -> str:
    try:
        compile_pattern(text)
    except re2.error:
        raise ValueError("it is no regular expression that can be searched for") from None
    return text


def _tags(text: str) -> frozenset[str]:
    tags = frozenset(text.split(","))
    if len(tags) > _TAGS_MAX:
        raise ValueError(f"at most {_TAGS_MAX} tags can be asked for")
    return tags


Instant = Annotated[Text, AfterValidator(instant)]
Pattern = Annotated[Text, Field(max_length=255), AfterValidator(_pattern)]
Short = Annotated[Text, Field(max_length=255)]
Lenient = Annotated[Text, AfterValidator(_lenient_bool)]
TagSet = Annotated[Text, Field(max_length=4096), AfterValidator(_tags)]


class ListServers(Sorted):
    """The parameters of both server lists; those that are not the caller's to use are ignored."""

    access_ip_v4: Short | None = None
    access_ip_v6: Short | None = None
    all_tenants: Short | None = None
    auto_disk_config: Short | None = None
    availability_zone: Short | None = None
    changes_before: Annotated[Instant | None, since("2.66"), Field(alias="changes-before")] = None
    changes_since: Annotated[Instant | None, Field(alias="changes-since")] = None
    config_drive: Boolean | None = None
    created_at: Instant | None = None
    deleted: Lenient | None = None
    description: Pattern | None = None
    display_name: Pattern | None = None
    flavor: Short | None = None
    host: Short | None = None
    hostname: Pattern | None = None
    image: Short | None = None
    image_ref: Short | None = None
    ip: Short | None = None
    ip6: Short | None = None
    kernel_id: Short | None = None
    key_name: Pattern | None = None
    launch_index: NonNegative | None = None
    launched_at: Instant | None = None
    locked: Annotated[Boolean | None, since("2.73")] = None
    locked_by: Short | None = None
    name: Pattern | None = None
    node: Short | None = None
    not_tags: Annotated[TagSet | None, since("2.26"), Field(alias="not-tags")] = None
    not_tags_any: Annotated[TagSet | None, since("2.26"), Field(alias="not-tags-any")] = None
    power_state: Annotated[int | None, Field(ge=0, le=7)] = None
    progress: Annotated[int | None, Field(ge=0, le=100)] = None
    project_id: Short | None = None
    ramdisk_id: Short | None = None
    reservation_id: Short | None = None
    root_device_name: Short | None = None
    soft_deleted: Short | None = None
    status: list[Text] = Field(default_factory=list, max_length=50)
    tags: Annotated[TagSet | None, since("2.26")] = None
    tags_any: Annotated[TagSet | None, since("2.26"), Field(alias="tags-any")] = None
    task_state: Short | None = None
    tenant_id: Short | None = None
    terminated_at: Instant | None = None
    user_id: Short | None = None
    uuid: Short | None = None
    vm_state: Short | None = None

    def page(self, who: Caller) -> Page:
        """Which part of the list; BadRequest or Forbidden for a sort key that is not to be had."""
        allowed = {*SORT_COLUMNS, *_IGNORED_SORTS}
        if not sorts_by_locked():
            allowed.discard("locked")
        order = self.order(allowed, _DEFAULT_ORDER)
        if not who.is_admin and (bad := [o.key for o in order if o.key in _ADMIN_SORTS]):
            raise Forbidden(f"Only administrators can sort servers by {bad[0]}")
        kept = [(o.key, o.descending) for o in order if o.key not in _IGNORED_SORTS]
        return Page(kept or list(_DEFAULT_ORDER), self.page_size, self.marker)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One list request by one caller."""

    query: ListServers
    who: Caller

    def get(self, name: str) -> Any:
        """The value of a filter, None when it is not given or not the caller's to use."""
        return getattr(self.query, name) if self._may(name) else None

    def _may(self, name: str) -> bool:
        if self.who.is_admin or (name in _FOR_ALL_LATER and filters_servers_freely()):
            return True
        if name == "ip6":
            return filters_by_ip6_for_all()
        return name not in _FOR_ADMIN | _FOR_ALL_LATER


def wanted_servers(
    session: Session, settings: Settings, who: Caller, query: ListServers
) -> ServerFilter | None:
    """The filter that a query means for this caller; None when nothing can match it."""
    asked = _Asked(query, who)
    check_span(query.changes_since, query.changes_before)
    statuses = _statuses(query)
    if statuses == ():
        return None
    dated = query.changes_since is not None or query.changes_before is not None
    zone = asked.get("availability_zone")
    default = settings.default_availability_zone
    return ServerFilter(
        project_id=_project(who, query),
        deleted=_deleted(asked, statuses, dated=dated),
        exact=_exact(asked),
        patterns=_patterns(asked),
        statuses=statuses,
        flavor=query.flavor,
        node=asked.get("node"),
        addresses=tuple(text for name in ("ip", "ip6") if (text := asked.get(name))),
        zone=zone,
        hosts_in_zone=hosts_in_zone(session, zone, default) if zone else (),
        changed_since=_moment(query.changes_since),
        changed_before=_moment(query.changes_before),
        tags=_tagset(query.tags),
        tags_any=_tagset(query.tags_any),
        not_tags=_tagset(query.not_tags),
        not_tags_any=_tagset(query.not_tags_any),
    )


def _moment(value: Any) -> datetime | None:
    moment: datetime | None = value
    return moment


def _tagset(value: Any) -> frozenset[str]:
    tags: frozenset[str] = value or frozenset()
    return tags


def _project(who: Caller, query: ListServers) -> str | None:
    foreign = query.tenant_id is not None and query.tenant_id != who.project_id
    everywhere = foreign
    if query.all_tenants is not None:
        try:  # the bare word, without a value, says yes
            everywhere = strutils.bool_from_string(query.all_tenants or "1", strict=True)
        except ValueError as error:
            raise BadRequest(f"Invalid input received: {error}") from None
    if not everywhere:
        return who.project_id
    authorize(who, "servers:index:all_tenants")
    return query.project_id or query.tenant_id


def _statuses(query: ListServers) -> tuple[Any, ...] | None:
    if not query.status:
        return None
    pairs = tuple(pair for text in query.status for pair in vm_states_of(text))
    if not pairs and refuses_unknown_status():
        raise BadRequest("Invalid status value")
    return pairs


def _deleted(asked: _Asked, statuses: tuple[Any, ...] | None, *, dated: bool) -> bool | None:
    gone = statuses is not None and {vm for vm, _ in statuses} == {VmState.DELETED}
    if gone or asked.get("vm_state") == VmState.DELETED:
        if not asked.who.is_admin:
            raise Forbidden("Only administrators may list deleted instances")
        return True
    given: bool | None = asked.get("deleted")
    if given is not None:
        return given
    return None if dated else False


def _exact(asked: _Asked) -> dict[str, Any]:
    names = (
        "config_drive", "created_at", "host", "launch_index", "launched_at", "locked", "power_state",
        "progress", "reservation_id", "task_state", "terminated_at", "user_id", "uuid", "vm_state",
    )  # fmt: skip
    found = {name: value for name in names if (value := asked.get(name)) is not None}
    if image := asked.query.image or asked.query.image_ref:
        found["image"] = image.rsplit("/", 1)[-1]
    return found


def _patterns(asked: _Asked) -> dict[str, str]:
    names = ("description", "hostname", "key_name", "name")
    found = {name: value for name in names if (value := asked.get(name)) is not None}
    if asked.query.display_name is not None:
        found.setdefault("name", asked.query.display_name)
    return found
