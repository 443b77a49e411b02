"""Compute services: the workers of the cloud, one per host and the control plane's own."""

from __future__ import annotations

import hashlib
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from oslo_utils import uuidutils
from pydantic import Field, StringConstraints
from sqlmodel import Session

from api.context import Db, TheCloud, allow
from api.fields import Boolean, HostName, Stamp, Text
from api.history import uses_host_uuids
from api.microversion import Body, Route, View, since, until, versions
from api.paging import Params
from api.policy import Caller
from db.groups import hosts_in_use, leave_aggregates, zones_of_hosts
from db.hosts import Host, count_claims, is_up, list_hosts
from db.session import now
from domain.errors import BadRequest, Conflict, NotFound

router = APIRouter(prefix="/v2.1/os-services", route_class=Route)
Admin = Annotated[Caller, allow("services")]

COMPUTE = "nova-compute"
CONTROL_HOST = "control"
CONTROL_ZONE = "internal"
CONTROL_SERVICES = ("nova-conductor", "nova-scheduler")
"""What clients look for; the control plane is both. It is up, or nobody would answer."""


def number_of(uuid: str) -> int:
    """The number by which old versions know a host or service: drawn from its uuid, so it stays."""
    return int.from_bytes(hashlib.blake2s(uuid.encode(), digest_size=6).digest(), "big")


def find_host(hosts: list[Host], attribute: str, ref: str) -> Host | None:
    """The host whose ``attribute`` (a uuid) is named by ``ref``: the uuid itself, or, in old versions,
    its number. BadRequest when ``ref`` is neither."""
    if uses_host_uuids():
        if not uuidutils.is_uuid_like(ref):
            raise BadRequest(f"Invalid uuid {ref}")
        return next((h for h in hosts if getattr(h, attribute) == ref), None)
    if not (ref.isascii() and ref.isdigit()):
        raise BadRequest(f"Invalid input received: id must be an integer, not {ref}")
    return next((h for h in hosts if str(number_of(getattr(h, attribute))) == ref), None)


# --- bodies

Reason = Annotated[Text, StringConstraints(min_length=1, max_length=255)]


class OldUpdate(Body):
    host: HostName
    binary: Annotated[Text, StringConstraints(min_length=1, max_length=255)]
    disabled_reason: Reason | None = None
    forced_down: Annotated[Boolean | None, since("2.11")] = None


class Update(Body):
    status: Literal["enabled", "disabled"] | None = None
    disabled_reason: Reason | None = None
    forced_down: Boolean | None = None


class ListServices(Params):
    host: str | None = None
    binary: str | None = None


# --- views


class ServiceView(View):
    number: Annotated[int, until("2.52"), Field(serialization_alias="id")]
    uuid: Annotated[str, since("2.53"), Field(serialization_alias="id")]
    binary: str
    host: str
    zone: str
    status: Literal["enabled", "disabled"]
    state: Literal["up", "down"]
    updated_at: Stamp | None
    disabled_reason: str | None = None
    forced_down: Annotated[bool, since("2.11")] = False


class ServiceEnvelope(View):
    service: ServiceView


class ServiceList(View):
    services: list[ServiceView]


def _control(binary: str) -> ServiceView:
    service_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"duranova:{CONTROL_HOST}:{binary}"))
    return ServiceView(
        number=number_of(service_id),
        uuid=service_id,
        binary=binary,
        host=CONTROL_HOST,
        zone=CONTROL_ZONE,
        status="enabled",
        state="up",
        updated_at=now(),
    )


def _compute(host: Host, zone: str, up: bool) -> ServiceView:
    return ServiceView(
        number=number_of(host.service_id),
        uuid=host.service_id,
        binary=COMPUTE,
        host=host.name,
        zone=zone,
        status="disabled" if host.disabled else "enabled",
        state="up" if up else "down",
        updated_at=host.reported_at,
        disabled_reason=host.disabled_reason,
        forced_down=host.forced_down,
    )


# --- handlers


@router.get("")
def index(
    query: Annotated[ListServices, Query()], who: Admin, db: Db, cloud: TheCloud
) -> ServiceList:
    zones = zones_of_hosts(db, cloud.settings.default_availability_zone)
    at = now()
    services = [_control(binary) for binary in CONTROL_SERVICES]
    services += [_compute(h, zones[h.name], is_up(h, cloud.settings, at)) for h in list_hosts(db)]
    return ServiceList(
        services=[
            s
            for s in services
            if (not query.host or s.host == query.host)
            and (not query.binary or s.binary == query.binary)
        ]
    )


def _refuse_control(binary: str) -> None:
    if binary != COMPUTE:
        raise BadRequest(
            f"Updating a {binary} service is not supported. Only nova-compute services can be updated."
        )


@router.put("/force-down")
@versions("2.11", "2.52")
def force_down(body: OldUpdate, who: Admin, db: Db) -> dict[str, dict[str, Any]]:
    if body.forced_down is None:
        raise BadRequest("Missing forced_down field")
    _change_by_name(db, body, {"forced_down": body.forced_down})
    return {
        "service": {
            "host": body.host,
            "binary": body.binary,
            "forced_down": body.forced_down,
        }
    }


@router.put("/{action}")
@versions("2.1", "2.52")
def update_by_name(action: str, body: OldUpdate, who: Admin, db: Db) -> dict[str, dict[str, Any]]:
    changes: dict[str, Any]
    shown: dict[str, Any] = {"host": body.host, "binary": body.binary}
    if action == "enable":
        changes = {"disabled": False, "disabled_reason": None}
        shown["status"] = "enabled"
    elif action == "disable":
        changes = {"disabled": True, "disabled_reason": None}
        shown["status"] = "disabled"
    elif action == "disable-log-reason":
        if body.disabled_reason is None:
            raise BadRequest("Missing disabled reason field")
        changes = {"disabled": True, "disabled_reason": body.disabled_reason}
        shown |= {"status": "disabled", "disabled_reason": body.disabled_reason}
    else:
        raise NotFound("Unknown action")
    _change_by_name(db, body, changes)
    return {"service": shown}


def _change_by_name(db: Session, body: OldUpdate, changes: dict[str, Any]) -> None:
    _refuse_control(body.binary)
    host = db.get(Host, body.host)
    if host is None:
        raise NotFound(f"Could not find binary {body.binary} on host {body.host}.")
    for name, value in changes.items():
        setattr(host, name, value)
    db.add(host)


@router.put("/{service_id}")
@versions("2.53")
def update(service_id: str, body: Update, who: Admin, db: Db, cloud: TheCloud) -> ServiceEnvelope:
    host = _find(db, service_id, f"Service {service_id} could not be found.")
    if body.status is None and body.forced_down is None:
        raise BadRequest(
            "No updates were requested. Fields 'status' or 'forced_down' should be specified."
        )
    if body.status == "enabled" and body.disabled_reason:
        raise BadRequest("Specifying 'disabled_reason' with status 'enabled' is invalid.")
    if body.status is not None:
        host.disabled = body.status == "disabled"
        host.disabled_reason = body.disabled_reason
    if body.forced_down is not None:
        host.forced_down = body.forced_down
    db.add(host)
    db.flush()
    zones = zones_of_hosts(db, cloud.settings.default_availability_zone)
    up = is_up(host, cloud.settings, now())
    return ServiceEnvelope(service=_compute(host, zones[host.name], up))


@router.delete("/{service_id}", status_code=204, response_class=Response)
def delete(service_id: str, who: Admin, db: Db) -> None:
    host = _find(db, service_id, f"Service {service_id} not found.")
    if hosts_in_use(db, [host.name]) or count_claims(db, host.name):
        raise Conflict(
            "Unable to delete compute service that is hosting instances. "
            "Migrate or delete the instances first."
        )
    leave_aggregates(db, host.name)
    db.delete(host)


def _find(db: Session, service_id: str, missing: str) -> Host:
    host = find_host(list_hosts(db), "service_id", service_id)
    if host is None:
        for binary in CONTROL_SERVICES:
            view = _control(binary)
            if service_id in (view.uuid, str(view.number)):
                _refuse_control(binary)
        raise NotFound(missing)
    return host
