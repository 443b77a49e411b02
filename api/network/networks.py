"""Networks: layer-2 segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlmodel import Session, col

from api.context import Db, TheCloud
from api.idempotency import KeyedRoute
from api.network.wire import (
    MAX_BULK,
    Entry,
    Envelope,
    Id,
    Json,
    OwnedEntry,
    Reader,
    Text,
    TheLister,
    Writer,
    admin_only,
    common,
    must_own,
    owner,
    scope,
    select_fields,
    settle,
    standard_columns,
    view_of,
)
from api.policy import Caller
from db.network.listing import Attributes
from db.network.networks import (
    add_network,
    delete_network,
    get_network,
    has_foreign_ports,
    hosts_on_network,
    network_not_found,
    subnets_of,
    touch,
    visible_networks,
)
from db.network.quotas import check_network_quota
from db.network.tables import Network
from domain.addressing import MAX_VNI
from domain.errors import Conflict

router = APIRouter(prefix="/v2.0/networks", tags=["networks"], route_class=KeyedRoute)
MAX_MTU = 1450
"""What the tunnels between hosts leave of an Ethernet frame."""
_ADMIN_ONLY = (
    "shared",
    "provider_type",
    "provider_physical_network",
    "provider_segment",
)
_HIDDEN = ("provider:network_type", "provider:physical_network", "provider:segmentation_id")
ATTRIBUTES = Attributes(
    Network,
    columns=standard_columns(Network)
    | {
        "name": col(Network.name),
        "admin_state_up": col(Network.admin_state_up),
        "shared": col(Network.shared),
        "mtu": col(Network.mtu),
        "port_security_enabled": col(Network.port_security_enabled),
        "provider:segmentation_id": col(Network.segment),
    },
    missing=network_not_found,
    admin_only=_HIDDEN,
    constants={
        "status": "ACTIVE",
        "router:external": False,
        "provider:network_type": "vxlan",
        "provider:physical_network": None,
    },
)


class CreateNetwork(OwnedEntry):
    """A new network."""

    name: Text = ""
    description: Text = ""
    admin_state_up: bool = True
    shared: bool = False
    mtu: Annotated[int, Field(ge=68, le=MAX_MTU)] = MAX_MTU
    port_security_enabled: bool = True
    router_external: Annotated[Literal[False], Field(alias="router:external")] = False
    provider_type: Annotated[Literal["vxlan"], Field(alias="provider:network_type")] = "vxlan"
    provider_physical_network: Annotated[None, Field(alias="provider:physical_network")] = None
    provider_segment: Annotated[
        int | None, Field(alias="provider:segmentation_id", ge=1, le=MAX_VNI)
    ] = None
    availability_zone_hints: Annotated[list[Id], Field(max_length=0)] = Field(default_factory=list)


class UpdateNetwork(Entry):
    """A changed network."""

    name: Text = ""
    description: Text = ""
    admin_state_up: bool = True
    shared: bool = False
    mtu: Annotated[int, Field(ge=68, le=MAX_MTU)] = MAX_MTU
    port_security_enabled: bool = True
    router_external: Annotated[Literal[False], Field(alias="router:external")] = False


class NewNetworks(Envelope):
    """One or several."""

    network: CreateNetwork | None = None
    networks: Annotated[list[CreateNetwork], Field(max_length=MAX_BULK)] = Field(
        default_factory=list
    )


class ChangedNetwork(Entry):
    """The body of an update."""

    network: UpdateNetwork


def network_views(session: Session, rows: Sequence[Network], who: Caller) -> list[Json]:
    """Networks as their callers see them."""
    subnets = subnets_of(session, [row.id for row in rows])
    return [view_of(_view(row, [s.id for s in subnets[row.id]]), _HIDDEN, who) for row in rows]


def _view(row: Network, subnet_ids: list[str]) -> Json:
    return common(row) | {
        "name": row.name,
        "admin_state_up": row.admin_state_up,
        "status": "ACTIVE",
        "shared": row.shared,
        "mtu": row.mtu,
        "port_security_enabled": row.port_security_enabled,
        "router:external": False,
        "subnets": subnet_ids,
        "tags": row.tags,
        "availability_zone_hints": [],
        "availability_zones": [],
        "ipv4_address_scope": None,
        "ipv6_address_scope": None,
        "provider:network_type": "vxlan",
        "provider:physical_network": None,
        "provider:segmentation_id": row.segment,
    }


@router.get("")
def list_networks(lister: TheLister, who: Reader) -> Json:
    """Own and shared networks."""
    return lister.answer("networks", ATTRIBUTES, visible_networks(scope(who)), network_views)


@router.post("", status_code=201)
def create_networks(body: NewNetworks, who: Writer, db: Db) -> Json:
    """Make one or several networks, all or none."""
    made = [_create(entry, who, db) for entry in body.entries()]
    return body.answer(network_views(db, made, who))


def _create(entry: CreateNetwork, who: Caller, db: Session) -> Network:
    admin_only(who, entry, _ADMIN_ONLY, "create_network")
    project_id = owner(who, entry)
    check_network_quota(db, project_id, "network", 1)
    network = Network(
        project_id=project_id,
        name=entry.name,
        description=entry.description,
        admin_state_up=entry.admin_state_up,
        shared=entry.shared,
        mtu=entry.mtu,
        port_security_enabled=entry.port_security_enabled,
        segment=0,
    )
    return add_network(db, network, entry.provider_segment)


@router.get("/{network_id}")
def show_network(network_id: str, request: Request, who: Reader, db: Db) -> Json:
    """One network."""
    network = get_network(db, network_id, scope(who))
    return {"network": select_fields(request, network_views(db, [network], who))[0]}


@router.put("/{network_id}")
def update_network(
    network_id: str, body: ChangedNetwork, who: Writer, db: Db, cloud: TheCloud
) -> Json:
    """Change a network."""
    network = get_network(db, network_id, scope(who), lock=True)
    must_own(who, network.project_id, "update_network")
    admin_only(who, body.network, ("shared",), "update_network")
    changes: dict[str, Any] = body.network.given(
        "name", "description", "admin_state_up", "shared", "mtu", "port_security_enabled"
    )
    if changes.get("shared") is False and network.shared and has_foreign_ports(db, network):
        raise Conflict(
            f"Unable to reconfigure sharing settings for network {network.id}. Multiple tenants are "
            "using it.",
            "InvalidSharedSetting",
        )
    for name, value in changes.items():
        setattr(network, name, value)
    touch(network)
    db.add(network)
    view = network_views(db, [network], who)[0]
    concerned = changes.keys() & {"mtu", "admin_state_up"}
    settle(db, cloud, hosts_on_network(db, network.id) if concerned else set())
    return {"network": view}


@router.delete("/{network_id}", status_code=204)
def remove_network(network_id: str, who: Writer, db: Db) -> Response:
    """Delete a network and its subnets, unless a port is on it."""
    network = get_network(db, network_id, scope(who), lock=True)
    must_own(who, network.project_id, "delete_network")
    delete_network(db, network)
    return Response(status_code=204)
