"""Discovery: the version documents and the extensions, those that are true of this service."""

from __future__ import annotations

from fastapi import APIRouter

from api.answers import AnsweringRoute
from api.context import TheCloud
from api.network.wire import Json, Reader
from domain.errors import NotFound

router = APIRouter(tags=["versions"], route_class=AnsweringRoute)
_RESOURCES = {
    "agent": "agents",
    "availability_zone": "availability_zones",
    "extension": "extensions",
    "floatingip": "floatingips",
    "network": "networks",
    "port": "ports",
    "quota": "quotas",
    "router": "routers",
    "security_group": "security-groups",
    "security_group_rule": "security-group-rules",
    "subnet": "subnets",
}
_EXTENSIONS = {
    "agent": ("agent", "The hosts that wire ports."),
    "allowed-address-pairs": (
        "Allowed Address Pairs",
        "Further source addresses that a port may use.",
    ),
    "availability_zone": ("Availability Zone", "The zones of the hosts."),
    "binding": ("Port Binding", "Which host wires a port."),
    "empty-string-filtering": ("Empty String Filtering", "A filter may ask for no value."),
    "filter-validation": ("Filter parameters validation", "An unknown filter is refused."),
    "ip-substring-filtering": (
        "IP address substring filtering",
        "Ports are found by a part of an address.",
    ),
    "net-mtu": ("Network MTU", "A network shows the size of its largest frame."),
    "net-mtu-writable": ("Network MTU (writable)", "The size may be set."),
    "pagination": ("Pagination support", "Lists come in pages."),
    "port-security": ("Port Security", "Anti-spoofing and filtering can be switched off."),
    "project-id": ("project_id field enabled", "Owners are called project_id and tenant_id."),
    "provider": ("Provider Network", "Admins see and choose a network's tunnel id."),
    "quota_details": ("Quota details management support", "Quotas are shown with their usage."),
    "quotas": ("Quota management support", "Limits per project."),
    "security-group": ("security-group", "Allow rules for ports."),
    "security-groups-normalized-cidr": (
        "Normalized CIDR field for security group rules",
        "A rule shows its prefix in normal form.",
    ),
    "sorting": ("Sorting support", "Lists are sorted by any attribute."),
    "standard-attr-description": ("standard-attr-description", "Every resource is described."),
    "standard-attr-revisions": ("Resource revision numbers", "Every change counts."),
    "standard-attr-tag": ("Tag support for resources with standard attribute", "Tags."),
    "standard-attr-timestamp": (
        "Resource timestamps",
        "Every resource knows when it was made and changed.",
    ),
}
_UPDATED = "2026-01-01T00:00:00-00:00"


def _base(cloud: TheCloud) -> str:
    return f"{cloud.settings.public_url.rstrip('/')}/network"


@router.get("/")
def list_versions(cloud: TheCloud) -> Json:
    """The versions there are."""
    link = {"rel": "self", "href": f"{_base(cloud)}/v2.0/"}
    return {"versions": [{"id": "v2.0", "status": "CURRENT", "links": [link]}]}


@router.get("/v2.0")
@router.get("/v2.0/")
def show_version(cloud: TheCloud) -> Json:
    """The resources of version 2.0."""
    return {
        "resources": [
            {
                "name": name,
                "collection": collection,
                "links": [{"rel": "self", "href": f"{_base(cloud)}/v2.0/{collection}"}],
            }
            for name, collection in _RESOURCES.items()
        ]
    }


def _extension(alias: str) -> Json:
    name, description = _EXTENSIONS[alias]
    return {
        "alias": alias,
        "name": name,
        "description": description,
        "updated": _UPDATED,
        "links": [],
    }


@router.get("/v2.0/extensions")
def list_extensions(who: Reader) -> Json:
    """What this service has beyond the core."""
    return {"extensions": [_extension(alias) for alias in _EXTENSIONS]}


@router.get("/v2.0/extensions/{alias}")
def show_extension(alias: str, who: Reader) -> Json:
    """One extension."""
    if alias not in _EXTENSIONS:
        raise NotFound(f"Extension with alias {alias:.64} does not exist")
    return {"extension": _extension(alias)}
