"""Host aggregates, and the availability zones they make."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError
from sqlmodel import Session

from api.compute.hosts import CONTROL_HOST, CONTROL_SERVICES, CONTROL_ZONE
from api.context import Db, TheCloud, allow
from api.fields import MAX_INT, AzName, HostName, Name, Stamp, Text
from api.microversion import Body, Route, View, since
from api.policy import Caller
from db.groups import (
    Aggregate,
    AggregateHost,
    find_membership,
    get_aggregate,
    hosts_in_use,
    hosts_of_aggregates,
    list_aggregates,
    zones_of,
    zones_of_hosts,
)
from db.hosts import get_host, is_up, list_hosts, lock_placement
from db.session import insert_unique, now
from domain.errors import BadRequest, Conflict, DuranovaError, NotFound
from domain.flavor import KEY

router = APIRouter(prefix="/v2.1", route_class=Route)
Admin = Annotated[Caller, allow("aggregates")]
AggregateId = Annotated[int, Path(ge=0, le=MAX_INT)]
_ZONE = "availability_zone"


# --- bodies


def _metadata_key(key: str) -> str:
    if not KEY.fullmatch(key):
        raise PydanticCustomError(
            "metadata",
            "Additional properties are not allowed ('{key}' does not match '^[a-zA-Z0-9-_:. ]+$')",
            {"key": key[:80]},
        )
    return key


Metadata = dict[
    Annotated[str, AfterValidator(_metadata_key)],
    Annotated[Text, StringConstraints(max_length=255)] | None,
]
"""A None value removes its key."""


class NewAggregate(Body):
    name: Name
    availability_zone: AzName | None = None


class CreateAggregate(Body):
    aggregate: NewAggregate


class Changes(Body):
    name: Name = ""
    availability_zone: AzName | None = None


class UpdateAggregate(Body):
    aggregate: Changes


class OneHost(Body):
    host: HostName


class NewMetadata(Body):
    metadata: Metadata


class Action(Body):
    add_host: OneHost | None = None
    remove_host: OneHost | None = None
    set_metadata: NewMetadata | None = None


# --- views


class AggregateBrief(View):
    id: int
    uuid: Annotated[str, since("2.41")]
    name: str
    availability_zone: str | None
    created_at: Stamp
    updated_at: Stamp | None
    deleted: bool = False
    deleted_at: None = None


class AggregateView(AggregateBrief):
    hosts: list[str]
    metadata: dict[str, str]


class AggregateMade(View):
    aggregate: AggregateBrief


class AggregateEnvelope(View):
    aggregate: AggregateView


class AggregateList(View):
    aggregates: list[AggregateView]


class ZoneState(View):
    available: bool


class ZoneService(View):
    available: bool
    active: bool
    updated_at: Stamp | None


class Zone(View):
    name: Annotated[str, Field(serialization_alias="zoneName")]
    state: Annotated[ZoneState, Field(serialization_alias="zoneState")]
    hosts: dict[str, dict[str, ZoneService]] | None = None


class ZoneList(View):
    zones: Annotated[list[Zone], Field(serialization_alias="availabilityZoneInfo")]


def _brief(aggregate: Aggregate) -> dict[str, Any]:
    return {
        "id": aggregate.id,
        "uuid": aggregate.uuid,
        "name": aggregate.name,
        "availability_zone": aggregate.zone,
        "created_at": aggregate.created_at,
        "updated_at": aggregate.updated_at,
    }


def _show(db: Session, aggregate: Aggregate) -> AggregateEnvelope:
    return AggregateEnvelope(aggregate=_views(db, [aggregate])[0])


def _views(db: Session, aggregates: list[Aggregate]) -> list[AggregateView]:
    hosts = hosts_of_aggregates(db, [_number(a) for a in aggregates])
    return [
        AggregateView(**_brief(a), hosts=hosts[_number(a)], metadata=a.metadata_)
        for a in aggregates
    ]


def _number(aggregate: Aggregate) -> int:
    assert aggregate.id is not None  # noqa: S101  # every stored aggregate has one
    return aggregate.id


# --- rules


def _check_zone(
    db: Session, aggregate: Aggregate, zone: str | None, refusal: str, hosts: list[str]
) -> None:
    """BadRequest, beginning with ``refusal``, unless ``zone`` may become the zone of these hosts."""
    number = _number(aggregate)
    said = f"Cannot {refusal} aggregate {number}. Reason: "
    if not zone:
        raise BadRequest(
            f"{said}Aggregate {aggregate.name} does not support empty named availability zone."
        )
    taken = set().union(*zones_of(db, hosts, but=number).values()) - {zone}
    if taken:
        raise BadRequest(
            f"{said}One or more hosts already in availability zone(s) {sorted(taken)}."
        )


def _check_no_servers(db: Session, aggregate: Aggregate, zone: str, refusal: str) -> None:
    hosts = hosts_of_aggregates(db, [_number(aggregate)])[_number(aggregate)]
    if zone != aggregate.zone and hosts_in_use(db, hosts):
        raise BadRequest(
            f"Cannot {refusal} aggregate {aggregate.id}. "
            "Reason: One or more hosts contain instances in this zone."
        )


def _check_stays(db: Session, host: str, before: str, after: str, verb: str) -> None:
    """Conflict when the host has servers and would change its zone by being ``verb`` the aggregate."""
    count = hosts_in_use(db, [host]).get(host, 0)
    if count and before != after:
        raise Conflict(
            f"The host cannot be {verb} the aggregate as the availability zone of the host would change "
            f"from '{before}' to '{after}' but the host already has {count} instance(s). "
            "Move the instances away from this host then try again."
        )


def _change_metadata(
    db: Session, aggregate: Aggregate, changes: dict[str, str | None], refusal: str
) -> None:
    lock_placement(db)
    if _ZONE in changes:
        zone = changes[_ZONE]
        hosts = hosts_of_aggregates(db, [_number(aggregate)])[_number(aggregate)]
        _check_zone(db, aggregate, zone, refusal, hosts)
        _check_no_servers(db, aggregate, str(zone), refusal)
    merged = {**aggregate.metadata_, **changes}
    aggregate.metadata_ = {key: value for key, value in merged.items() if value is not None}
    aggregate.updated_at = now()
    db.add(aggregate)


# --- aggregates


@router.get("/os-aggregates")
def index(who: Admin, db: Db) -> AggregateList:
    return AggregateList(aggregates=_views(db, list_aggregates(db)))


@router.post("/os-aggregates")
def create(body: CreateAggregate, who: Admin, db: Db) -> AggregateMade:
    asked = body.aggregate
    zone = asked.availability_zone
    aggregate = Aggregate(name=asked.name, metadata_={_ZONE: zone} if zone else {})
    insert_unique(db, aggregate, f"Aggregate {asked.name} already exists.")
    return AggregateMade(aggregate=AggregateBrief(**_brief(aggregate)))


@router.get("/os-aggregates/{aggregate_id}")
def show(aggregate_id: AggregateId, who: Admin, db: Db) -> AggregateEnvelope:
    return _show(db, get_aggregate(db, aggregate_id))


@router.put("/os-aggregates/{aggregate_id}")
def update(
    aggregate_id: AggregateId, body: UpdateAggregate, who: Admin, db: Db
) -> AggregateEnvelope:
    asked = body.aggregate
    if not asked.model_fields_set:
        raise BadRequest(
            "Invalid input for field/attribute aggregate. Value: {}. "
            "{} is not valid under any of the given schemas"
        )
    aggregate = get_aggregate(db, aggregate_id)
    if _ZONE in asked.model_fields_set:
        _change_metadata(db, aggregate, {_ZONE: asked.availability_zone}, "update")
    if "name" in asked.model_fields_set:
        aggregate.name = asked.name
        aggregate.updated_at = now()
    insert_unique(db, aggregate, f"Aggregate {asked.name} already exists.")
    return _show(db, aggregate)


@router.delete("/os-aggregates/{aggregate_id}", response_class=Response)
def delete(aggregate_id: AggregateId, who: Admin, db: Db) -> None:
    aggregate = get_aggregate(db, aggregate_id)
    if hosts_of_aggregates(db, [aggregate_id])[aggregate_id]:
        raise BadRequest(
            f"Cannot remove aggregate {aggregate_id}. Reason: Host aggregate is not empty."
        )
    db.delete(aggregate)


@router.post("/os-aggregates/{aggregate_id}/action")
def act(
    aggregate_id: AggregateId, body: Action, who: Admin, db: Db, cloud: TheCloud
) -> AggregateEnvelope:
    given = [part for part in (body.add_host, body.remove_host, body.set_metadata) if part]
    if len(given) != 1:
        raise BadRequest("There is no such action, or more than one in the body.")
    default_zone = cloud.settings.default_availability_zone
    if body.add_host is not None:
        _add_host(db, aggregate_id, body.add_host.host, default_zone)
    elif body.remove_host is not None:
        _remove_host(db, aggregate_id, body.remove_host.host, default_zone)
    elif body.set_metadata is not None:
        aggregate = get_aggregate(db, aggregate_id)
        _change_metadata(db, aggregate, body.set_metadata.metadata, "update metadata of")
    db.flush()
    return _show(db, get_aggregate(db, aggregate_id))


def _add_host(db: Session, aggregate_id: int, host: str, default_zone: str) -> None:
    get_host(db, host)
    aggregate = get_aggregate(db, aggregate_id)
    lock_placement(db)
    if aggregate.zone:
        try:
            _check_zone(db, aggregate, aggregate.zone, "add host to", [host])
        except DuranovaError as error:
            raise Conflict(error.message) from error
        before = zones_of_hosts(db, default_zone)[host]
        _check_stays(db, host, before, aggregate.zone, "added to")
    clash = f"Aggregate {aggregate_id} already has host {host}."
    insert_unique(db, AggregateHost(aggregate_id=aggregate_id, host=host), clash)


def _remove_host(db: Session, aggregate_id: int, host: str, default_zone: str) -> None:
    get_aggregate(db, aggregate_id)
    membership = find_membership(db, aggregate_id, host)
    if membership is None:
        raise NotFound(f"Cannot remove host {host} in aggregate {aggregate_id}")
    lock_placement(db)
    before = zones_of_hosts(db, default_zone).get(host, default_zone)
    db.delete(membership)
    db.flush()
    after = zones_of_hosts(db, default_zone).get(host, default_zone)
    _check_stays(db, host, before, after, "removed from")


# --- availability zones


def _zones(db: Session, cloud: TheCloud) -> dict[str, bool]:
    """Zone → whether it is available: it has a host that is not disabled. Available ones first."""
    of_host = zones_of_hosts(db, cloud.settings.default_availability_zone)
    enabled = {of_host[host.name] for host in list_hosts(db) if not host.disabled}
    closed = set(of_host.values()) - enabled
    return dict.fromkeys(sorted(enabled), True) | dict.fromkeys(sorted(closed), False)


@router.get("/os-availability-zone")
def list_zones(
    who: Annotated[Caller, allow("availability_zones:list")], db: Db, cloud: TheCloud
) -> ZoneList:
    zones = _zones(db, cloud)
    return ZoneList(
        zones=[Zone(name=name, state=ZoneState(available=ok)) for name, ok in zones.items()]
    )


@router.get("/os-availability-zone/detail")
def detail_zones(
    who: Annotated[Caller, allow("availability_zones:detail")], db: Db, cloud: TheCloud
) -> ZoneList:
    of_host = zones_of_hosts(db, cloud.settings.default_availability_zone)
    at = now()
    control = ZoneService(available=True, active=True, updated_at=at)
    inside: dict[str, dict[str, dict[str, ZoneService]]] = {
        CONTROL_ZONE: {CONTROL_HOST: dict.fromkeys(CONTROL_SERVICES, control)}
    }
    for host in list_hosts(db):
        if not host.disabled:
            up = is_up(host, cloud.settings, at)
            compute = ZoneService(available=up, active=True, updated_at=host.reported_at)
            inside.setdefault(of_host[host.name], {})[host.name] = {"nova-compute": compute}
    states = {CONTROL_ZONE: True} | _zones(db, cloud)
    return ZoneList(
        zones=[
            Zone(name=name, state=ZoneState(available=ok), hosts=inside.get(name))
            for name, ok in states.items()
        ]
    )
