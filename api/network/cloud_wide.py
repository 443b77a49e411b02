"""What the network service says about the cloud: agents, zones; and what it does not have, said cleanly."""

from __future__ import annotations

from fastapi import APIRouter
from sqlmodel import Session

from api.context import Cloud, Db, TheCloud
from api.idempotency import KeyedRoute
from api.network.wire import Admin, Json, Reader, Writer, stamp
from db.hosts import Host, is_up, list_hosts
from db.session import now
from domain.errors import NotFound, NotImplementedHere

router = APIRouter(prefix="/v2.0", tags=["cloud"], route_class=KeyedRoute)


@router.get("/agents")
def list_agents(who: Admin, db: Db, cloud: TheCloud) -> Json:
    """One agent per host: its worker wires the ports there."""
    return {"agents": _agents(db, cloud)}


@router.get("/agents/{agent_id}")
def show_agent(agent_id: str, who: Admin, db: Db, cloud: TheCloud) -> Json:
    """One agent."""
    for agent in _agents(db, cloud):
        if agent["id"] == agent_id:
            return {"agent": agent}
    raise NotFound(f"Agent {agent_id:.64} could not be found.", "AgentNotFound")


def _agents(db: Session, cloud: Cloud) -> list[Json]:
    return [_agent(host, cloud) for host in list_hosts(db)]


def _agent(host: Host, cloud: Cloud) -> Json:
    heard = host.reported_at or host.created_at
    return {
        "id": host.service_id,
        "agent_type": "Duranova host worker",
        "binary": "duranova-host",
        "topic": "N/A",
        "host": host.name,
        "availability_zone": host.availability_zone or cloud.settings.default_availability_zone,
        "admin_state_up": True,
        "alive": is_up(host, cloud.settings, now()),
        "configurations": {},
        "description": None,
        "created_at": stamp(host.created_at),
        "started_at": stamp(host.created_at),
        "heartbeat_timestamp": stamp(heard),
        "resources_synced": None,
    }


@router.get("/availability_zones")
def list_availability_zones(who: Reader, db: Db, cloud: TheCloud) -> Json:
    """The zones of the hosts; networks reach all of them."""
    zones = {agent["availability_zone"] for agent in _agents(db, cloud)}
    names = sorted(zones or {cloud.settings.default_availability_zone})
    return {
        "availability_zones": [
            {"name": name, "resource": "network", "state": "available"} for name in names
        ]
    }


@router.get("/routers")
def list_routers(who: Reader) -> Json:
    """There are none."""
    return {"routers": []}


@router.get("/floatingips")
def list_floating_ips(who: Reader) -> Json:
    """There are none."""
    return {"floatingips": []}


@router.get("/routers/{router_id}")
def show_router(router_id: str, who: Reader) -> Json:
    """There is none."""
    raise NotFound(f"Router {router_id:.64} could not be found", "RouterNotFound")


@router.get("/floatingips/{floating_ip_id}")
def show_floating_ip(floating_ip_id: str, who: Reader) -> Json:
    """There is none."""
    raise NotFound(f"Floating IP {floating_ip_id:.64} could not be found", "FloatingIPNotFound")


@router.post("/routers")
def create_router(who: Writer) -> Json:
    """Not part of this cloud."""
    raise NotImplementedHere("This cloud has no routers: each host routes for its guests.")


@router.post("/floatingips")
def create_floating_ip(who: Writer) -> Json:
    """Not part of this cloud."""
    raise NotImplementedHere("This cloud has no floating IPs.")
