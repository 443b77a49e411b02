"""Version documents, the service catalog, and its read-only views: services, endpoints, regions."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple
from uuid import UUID, uuid5

from fastapi import APIRouter
from starlette.responses import JSONResponse

from api.answers import AnsweringRoute
from api.context import TheCloud, allow
from api.identity.links import TheLinks
from api.policy import Caller
from domain.errors import NotFound
from runtime.settings import Settings

router = APIRouter(route_class=AnsweringRoute)
INTERFACES = ("public", "internal", "admin")
_IDS = UUID("5d0c4d3e-54c3-4f2f-8f3c-1ab6f0a4d7c1")


class Service(NamedTuple):
    """One catalog entry."""

    type: str
    name: str
    path: str
    description: str

    @property
    def id(self) -> str:
        """The same in every answer of every replica."""
        return uuid5(_IDS, self.type).hex


SERVICES = (
    Service("compute", "nova", "/compute/v2.1", "Compute service"),
    Service("identity", "keystone", "/identity", "Identity service"),
    Service("image", "glance", "/image", "Image service"),
    Service("network", "neutron", "/network", "Network service"),
    Service("operations", "duranova", "/operations/v1", "Operations service"),
)


def _endpoints(settings: Settings, service: Service) -> list[dict[str, Any]]:
    return [
        {
            "id": uuid5(_IDS, f"{settings.region}/{service.type}/{interface}").hex,
            "interface": interface,
            "region": settings.region,
            "region_id": settings.region,
            "url": settings.public_url.rstrip("/") + service.path,
        }
        for interface in INTERFACES
    ]


def catalog(settings: Settings) -> list[dict[str, Any]]:
    """The catalog as a token carries it."""
    return [
        {"id": s.id, "type": s.type, "name": s.name, "endpoints": _endpoints(settings, s)}
        for s in SERVICES
    ]


# --- version documents: public, nobody has a token yet


def _version(root: str) -> dict[str, Any]:
    kind = "application/vnd.openstack.identity-v3+json"
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{root}/"}],
        "media-types": [{"base": "application/json", "type": kind}],
    }


@router.get("/", status_code=300)
def list_versions(links: TheLinks) -> JSONResponse:
    """Every version there is: one."""
    headers = {"Location": f"{links.root}/", "Vary": "X-Auth-Token"}
    return JSONResponse({"versions": {"values": [_version(links.root)]}}, 300, headers)


@router.get("/v3")
def show_version(links: TheLinks) -> JSONResponse:
    """The version document of v3."""
    return JSONResponse({"version": _version(links.root)}, headers={"Vary": "X-Auth-Token"})


# --- read-only views


def _service_view(service: Service, links: TheLinks) -> dict[str, Any]:
    return {
        "id": service.id,
        "type": service.type,
        "name": service.name,
        "description": service.description,
        "enabled": True,
        "links": links.of("services", service.id),
    }


@router.get("/v3/services")
def list_services(
    _who: Annotated[Caller, allow("identity:read")],
    links: TheLinks,
    type: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """The services of the catalog."""
    found = (s for s in SERVICES if type in (None, s.type) and name in (None, s.name))
    return links.listing("services", (_service_view(s, links) for s in found))


@router.get("/v3/services/{service_id}")
def show_service(
    service_id: str, _who: Annotated[Caller, allow("identity:read")], links: TheLinks
) -> dict[str, Any]:
    """One service."""
    for service in SERVICES:
        if service.id == service_id:
            return {"service": _service_view(service, links)}
    raise NotFound(f"Could not find service: {service_id}.")


def _endpoint_views(settings: Settings, links: TheLinks) -> list[dict[str, Any]]:
    return [
        e | {"service_id": s.id, "enabled": True, "links": links.of("endpoints", e["id"])}
        for s in SERVICES
        for e in _endpoints(settings, s)
    ]


@router.get("/v3/endpoints")
def list_endpoints(
    _who: Annotated[Caller, allow("identity:read")],
    cloud: TheCloud,
    links: TheLinks,
    service_id: str | None = None,
    interface: str | None = None,
    region_id: str | None = None,
) -> dict[str, Any]:
    """Where the services are."""
    wanted = {"service_id": service_id, "interface": interface, "region_id": region_id}
    found = (
        e
        for e in _endpoint_views(cloud.settings, links)
        if all(v in (None, e[k]) for k, v in wanted.items())
    )
    return links.listing("endpoints", found)


@router.get("/v3/endpoints/{endpoint_id}")
def show_endpoint(
    endpoint_id: str,
    _who: Annotated[Caller, allow("identity:read")],
    cloud: TheCloud,
    links: TheLinks,
) -> dict[str, Any]:
    """One endpoint."""
    for endpoint in _endpoint_views(cloud.settings, links):
        if endpoint["id"] == endpoint_id:
            return {"endpoint": endpoint}
    raise NotFound(f"Could not find endpoint: {endpoint_id}.")


def _region_view(region: str, links: TheLinks) -> dict[str, Any]:
    return {
        "id": region,
        "description": "",
        "parent_region_id": None,
        "links": links.of("regions", region),
    }


@router.get("/v3/regions")
def list_regions(
    _who: Annotated[Caller, allow("identity:self")],
    cloud: TheCloud,
    links: TheLinks,
    parent_region_id: str | None = None,
) -> dict[str, Any]:
    """The one region."""
    regions = [] if parent_region_id else [_region_view(cloud.settings.region, links)]
    return links.listing("regions", regions)


@router.get("/v3/regions/{region_id}")
def show_region(
    region_id: str,
    _who: Annotated[Caller, allow("identity:self")],
    cloud: TheCloud,
    links: TheLinks,
) -> dict[str, Any]:
    """One region."""
    if region_id != cloud.settings.region:
        raise NotFound(f"Could not find region: {region_id}.")
    return {"region": _region_view(region_id, links)}
